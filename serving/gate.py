"""Who may call a server from a browser: an ASGI middleware that looks at `Host` and `Origin`.

Contract: a page of another site can reach a server on this machine, by a name of its own that leads
here (DNS rebinding) or by a plain POST. Therefore a server on a loopback address answers to its own
names only, and a request that a page of another site has sent is refused unless the site is named.
Without a `Host` or an `Origin` no browser has sent it.

Not covered: what a browser may read, which is CORS, and Starlette's.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from greenllm.core import new_request_id
from serving.config import HttpOptions, is_loopback
from serving.errors import MOST_SHOWN, ApiError

ANY = "*"


class Gate:
    """Refuses hosts and origins that are not allowed, before anything else is looked at."""

    def __init__(self, app: ASGIApp, options: HttpOptions) -> None:
        self._app = app
        self._options = options
        self._hosts = frozenset(name.lower() for name in (options.host, *options.allowed_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may come in."""
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refusal.response(new_request_id("req"))(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        for host in headers.getlist("host"):
            if not self._is_ours(name_of(host)):
                return _refused("host", host, "allowed-hosts", name_of(host))
        for origin in headers.getlist("origin"):
            if not self._is_known(origin, headers.get("host", "")):
                return _refused("origin", origin, "allowed-origins", origin)
        return None

    def _is_ours(self, name: str) -> bool:
        here = is_loopback(self._options.host)
        if ANY in self._hosts or not (here or self._options.allowed_hosts):
            return True
        return name in self._hosts or (here and is_loopback(name))

    def _is_known(self, origin: str, host: str) -> bool:
        """Whether a page comes from a site that is named, or from this server itself."""
        allowed = self._options.allowed_origins
        is_own = urlsplit(origin).netloc.lower() == host.lower() != ""
        return is_own or ANY in allowed or origin in allowed


def name_of(host: str) -> str:
    """The name in a `Host` header, without its port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _refused(what: str, given: str, option: str, value: str) -> ApiError:
    shown, value = given[:MOST_SHOWN], value[:MOST_SHOWN]
    message = f"the {what.capitalize()} {shown!r} is not allowed here"
    hint = f"; if it should be, start the server with --{option} {value}"
    return ApiError(403, message + hint, code=f"{what}_not_allowed")
