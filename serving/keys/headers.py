"""The headers that tell a key where it stands with its limits, as OpenAI names them.

    x-ratelimit-limit-tokens: 1000
    x-ratelimit-remaining-tokens: 640
    x-ratelimit-reset-tokens: 22s

Contract: every answer to a key with limits has them, also a refusal and the head of a stream. Those
of joules and grams are named alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greenllm.energy.units import plain_decimal
from serving.keys.limits import Standing

_STANDINGS = "standings"


def tell(state: Any, standings: Callable[[], Mapping[str, Standing]]) -> None:
    """Have the answer to a request tell what `standings` says then; `state` is the request's."""
    setattr(state, _STANDINGS, standings)


def limit_headers(standings: Mapping[str, Standing]) -> dict[str, str]:
    """Three headers for each limit."""
    found: dict[str, str] = {}
    for limit, standing in standings.items():
        what = limit.partition("_")[0]
        left = max(0.0, standing.left)
        found[f"x-ratelimit-limit-{what}"] = f"{standing.allowed:.15g}"
        whole = what in ("requests", "tokens")
        found[f"x-ratelimit-remaining-{what}"] = (
            str(math.floor(left)) if whole else plain_decimal(left, 3)
        )
        found[f"x-ratelimit-reset-{what}"] = duration(standing.reset_s)
    return found


def duration(seconds: float) -> str:
    """`8h0m1s`, `6m0s`, `2s`, `20ms`: as OpenAI and Go write it."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, last = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{last}s"
    return f"{minutes}m{last}s" if minutes else f"{last}s"


class LimitHeaders:
    """Adds them to answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; what `tell` was given is asked when its answer begins."""

        async def send_with_headers(message: Message) -> None:
            standings = scope.get("state", {}).get(_STANDINGS)
            if message["type"] == "http.response.start" and standings is not None:
                more = limit_headers(standings())
                pairs = [(name.encode(), value.encode()) for name, value in more.items()]
                message["headers"] = [*message.get("headers", ()), *pairs]
            await send(message)

        await self._app(scope, receive, send_with_headers)
