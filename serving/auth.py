"""Lets callers in: every route's first dependency, and the one place where scopes are looked at.

Contract: a handler runs only for a caller whom `rules` let in, whom it finds as
`http.state.caller`. Others get OpenAI's error object: 401 without a valid key, 403 without the
scope, 429 where nothing is left of a limit. None of these leaves a row in the ledger: they could
fill the disk. They are counted in the metrics.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, cast

from fastapi import Depends
from fastapi import Request as HttpRequest

from serving.errors import ApiError
from serving.keys.caller import STRANGER, Caller
from serving.keys.headers import tell
from serving.keys.limits import LimitExceededError
from serving.keys.ring import KeyRing
from serving.keys.rules import Rule, rule_of
from serving.state import ServerState, state_of


async def admit(http: HttpRequest) -> None:
    """Let a caller in, or not.

    Raises:
        ApiError: no valid key (401), not the scope (403), or over a limit (429).
    """
    rule = rule_of(http.method, http.scope["route"].path)
    http.state.caller = STRANGER if rule.is_open else await _let_in(state_of(http), http, rule)


async def _let_in(state: ServerState, http: HttpRequest, rule: Rule) -> Caller:
    token = token_of(http)
    try:
        caller = identified(state.access.keys, token)
    except ApiError:
        state.metrics.wrong_keys.inc()
        if token is not None:
            await state.access.attempts.slow_down(address_of(http))
        raise
    require_scope(caller, rule)
    if caller.known and caller.name is not None:
        limiter, name = state.access.limiter, caller.name
        tell(http.state, partial(limiter.standings, name, caller.limits))
        if rule.is_generation:
            require_place(state, caller)
        try:
            limiter.begin(name, caller.limits, spends=rule.spends)
        except LimitExceededError as error:
            raise _over_limit(state, error) from error
    return caller


def identified(keys: KeyRing, token: bytes | None) -> Caller:
    """Whoever shows a key.

    Raises:
        ApiError: keys are required and this is none of them.
    """
    caller = keys.find(token)
    if caller is None:
        raise ApiError(
            401,
            "a valid API key is required: Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return caller


def require_scope(caller: Caller, rule: Rule) -> None:
    """Refuse a caller without a scope that the rule asks for.

    Raises:
        ApiError: with the scopes that would do.
    """
    if not caller.has_any(rule.scopes):
        wanted = " or ".join(sorted(rule.scopes))
        raise ApiError(
            403, f"this key lacks the scope that is needed: {wanted}", code="missing_scope"
        )


def require_place(state: ServerState, caller: Caller) -> None:
    """Refuse a key that has as many requests in flight as it may have.

    Raises:
        ApiError: it is to come back.
    """
    most = caller.limits.concurrent_requests
    if most is not None and state.bridge.num_of(caller.name) >= most:
        raise _over_limit(state, LimitExceededError("concurrent_requests", most, 1.0))


def _over_limit(state: ServerState, error: LimitExceededError) -> ApiError:
    """The answer to a key that has used what it may."""
    state.metrics.over_limit.labels(error.limit).inc()
    headers = {"Retry-After": str(error.retry_after_s)}
    return ApiError(429, str(error), code="rate_limit_exceeded", headers=headers)


def token_of(http: HttpRequest) -> bytes | None:
    """The key in the `Authorization` header, as it was sent."""
    scheme, _, token = http.headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") or None if scheme.lower() == "bearer" else None


def address_of(http: HttpRequest) -> str | None:
    """Where a request comes from."""
    return http.client.host if http.client else None


def caller_of(http: HttpRequest) -> Caller:
    """Whom `admit` has let in."""
    return cast(Caller, http.state.caller)


async def asking(http: HttpRequest) -> Caller:
    """The same, as a coroutine, because others are called in threads."""
    return caller_of(http)


Asking = Annotated[Caller, Depends(asking)]


def audit(http: HttpRequest, did: str, what: str) -> None:
    """Note what an administrator has changed."""
    caller = caller_of(http)
    if caller.known and caller.is_admin and caller.name is not None:
        log = state_of(http).access.audit
        log.note(caller.name, did, what, address=address_of(http))
