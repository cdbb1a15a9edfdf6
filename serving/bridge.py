"""Between asyncio and the engine thread.

Tokens of requests that are not streamed are only collected; their handler wakes once, with the
receipt. Streams wake once per engine step, not once per token.

Contract: every submission ends with a receipt (provisional at worst), or with `EngineDownError`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from greenllm.core import Request, Token
from greenllm.energy.receipt import Receipt
from serving.keys.limits import Limiter
from serving.metrics import Metrics
from serving.outcome import status_of

# Tokens that a stream is told at a time: with 20 alternatives each they take some 20 ms.
MOST_TOLD = 128


class QueueFullError(Exception):
    """Too much is in flight; `retry_after_s` says when to come back."""

    def __init__(self, reason: str, retry_after_s: int) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


_MOST_OF_ONE_KEY = 0.75


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may be in flight at once: requests, and the tokens that they may come to.

    One key has at most three quarters of either, so that there is always room for others.
    """

    max_requests: int = 256
    max_tokens: int = 4_000_000

    def reason_against(self, request: Request, in_flight: _Load, part: float) -> str | None:
        """What there is too much of for another request within a part of the limits."""
        if in_flight.requests >= max(1, int(part * self.max_requests)):
            return f"{in_flight.requests} requests"
        if in_flight.requests and in_flight.tokens + request.most_tokens > part * self.max_tokens:
            return f"requests for up to {in_flight.tokens} tokens"
        return None


@dataclass(slots=True)
class _Load:
    """Requests in flight, and the tokens that they may come to."""

    requests: int = 0
    tokens: int = 0

    def add(self, request: Request, sign: int) -> None:
        """One more (1) or one less (-1)."""
        self.requests += sign
        self.tokens += sign * request.most_tokens


class EngineDownError(Exception):
    """The engine thread has stopped."""


class Submission:
    """One request in flight, as its handler sees it."""

    def __init__(self, request: Request, *, streaming: bool) -> None:
        self.request = request
        self.streaming = streaming
        self.receipt: Receipt | None = None
        self.broken = False
        self.left = False
        self.tokens: deque[Token] = deque()
        self.wake = asyncio.Event()

    async def batches(
        self, keep_alive_s: float, interval_s: float = 0.0
    ) -> AsyncIterator[list[Token] | None]:
        """Yield tokens as they come, None when nothing came for `keep_alive_s`.

        The first come at once, later ones at most every `interval_s`. Ends once the receipt is
        there.
        """
        loop = asyncio.get_running_loop()
        while self.receipt is None:
            # A timer costs a tenth of what wait_for does, and this runs once per token.
            timer = loop.call_later(keep_alive_s, self.wake.set)
            try:
                await self.wake.wait()
            finally:
                timer.cancel()
            self.wake.clear()
            self._check()
            if not self.tokens and self.receipt is None:
                yield None
            has_told = bool(self.tokens)
            while self.tokens:
                yield await self._piece()
            if has_told and self.receipt is None and interval_s > 0:
                await asyncio.sleep(interval_s)
        while self.tokens:
            yield await self._piece()

    async def _piece(self) -> list[Token]:
        """Some of the tokens; between the pieces of many, others get their turn."""
        if len(self.tokens) > MOST_TOLD:
            await asyncio.sleep(0)
        return self._take(MOST_TOLD)

    async def complete(self) -> list[Token]:
        """Wait for the receipt; return all tokens."""
        while self.receipt is None:
            await self.wake.wait()
            self.wake.clear()
            self._check()
        return self._take(len(self.tokens))

    def _take(self, most: int) -> list[Token]:
        return [self.tokens.popleft() for _ in range(min(most, len(self.tokens)))]

    def _check(self) -> None:
        if self.broken:
            raise EngineDownError("the engine stopped; see the server's log")


class Bridge:
    """Keeps the requests in flight, and brings them what the engine thread has for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: QueueLimits) -> None:
        self._loop = loop
        self._limits = limits
        self._open: dict[str, Submission] = {}
        self._all = _Load()
        self._of_key: dict[str, _Load] = {}
        self._mean_duration_s = 1.0

    @property
    def num_in_flight(self) -> int:
        """Requests without a receipt."""
        return len(self._open)

    def num_of(self, key: str | None) -> int:
        """Those of one key."""
        return self._load_of(key).requests

    def open_ids(self) -> list[str]:
        """Ids of the requests without a receipt."""
        return list(self._open)

    def check_room(self, request: Request) -> None:
        """Refuse when there is no room for a request; an empty queue has room for any.

        Raises:
            QueueFullError: too much is in flight, in all or of the request's key.
        """
        own = self._load_of(request.key)
        for found, part, whose in ((self._all, 1.0, ""), (own, _MOST_OF_ONE_KEY, " of this key")):
            reason = self._limits.reason_against(request, found, part)
            if reason is not None:
                retry_after_s = max(1, round(self._mean_duration_s))
                raise QueueFullError(f"{reason}{whose} are in flight", retry_after_s)

    def open(self, request: Request, *, streaming: bool) -> Submission:
        """Expect results for a request that is about to go to the engine.

        Raises:
            QueueFullError: there is no room for it.
        """
        self.check_room(request)
        submission = Submission(request, streaming=streaming)
        self._open[request.request_id] = submission
        self._count(request, 1)
        return submission

    def _load_of(self, key: str | None) -> _Load:
        """What one key has in flight; requests without a key are nobody's."""
        return _Load() if key is None else self._of_key.get(key, _Load())

    def _count(self, request: Request, sign: int) -> None:
        """Keep the loads in step with what is open: they are asked for with every request."""
        self._all.add(request, sign)
        if request.key is not None:
            load = self._of_key.setdefault(request.key, _Load())
            load.add(request, sign)
            if not load.requests:
                del self._of_key[request.key]

    def leave(self, submission: Submission) -> bool:
        """The client is gone; returns whether the engine still works for it."""
        submission.left = submission.receipt is None
        return submission.left

    def stamp(self, receipt: Receipt) -> Receipt:
        """A receipt with the status of its answer; called on the engine thread.

        One that comes after the answer, final after provisional, is left as it is.
        """
        submission = self._open.get(receipt.request_id)
        if submission is None:
            return receipt
        status = status_of(
            receipt.outcome, streaming=submission.streaming, client_left=submission.left
        )
        return replace(receipt, http_status=status)

    def publish(self, tokens: Sequence[Token], receipts: Sequence[Receipt]) -> None:
        """Take results; called on the engine thread."""
        wake: set[Submission] = set()
        for token in tokens:
            submission = self._open.get(token.request_id)
            if submission is not None:
                submission.tokens.append(token)
                if submission.streaming:
                    wake.add(submission)
        if wake or receipts:
            self._loop.call_soon_threadsafe(self._deliver, wake, receipts)

    def _deliver(self, wake: set[Submission], receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            submission = self._open.pop(receipt.request_id, None)
            if submission is not None:
                self._count(submission.request, -1)
                submission.receipt = receipt
                self._mean_duration_s += 0.1 * (receipt.duration_s - self._mean_duration_s)
                wake.add(submission)
        for submission in wake:
            submission.wake.set()

    def failed(self) -> None:
        """The engine is down: wake everybody with an error; called on the engine thread."""
        self._loop.call_soon_threadsafe(self._break_all)

    def _break_all(self) -> None:
        for submission in self._open.values():
            submission.broken = True
            submission.wake.set()
        self._open.clear()
        self._all = _Load()
        self._of_key.clear()


@dataclass(frozen=True, slots=True)
class Listeners:
    """Passes on what the engine thread tells: final receipts are counted, answers delivered."""

    metrics: Metrics
    bridge: Bridge
    limiter: Limiter

    def stamp(self, receipt: Receipt) -> Receipt:
        """Add the status of the answer; see `Listener`."""
        return self.bridge.stamp(receipt)

    def publish(self, tokens: Sequence[Token], receipts: Sequence[Receipt]) -> None:
        """Count and deliver; see `Listener`."""
        for receipt in receipts:
            if receipt.status != "provisional":
                self.metrics.observe(receipt)
                used = receipt.prompt_tokens + receipt.completion_tokens
                self.limiter.spend(receipt.key, used, receipt.total_j, receipt.gco2e)
        self.bridge.publish(tokens, receipts)

    def failed(self) -> None:
        """Every open request ends with an error; see `Listener`."""
        self.bridge.failed()
