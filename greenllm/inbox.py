"""Where the engine thread leaves results for the callers of `greenllm.LLM`.

Contract: every request that is expected ends with a receipt, or with `EngineStoppedError`.
Callers may be in any thread. For asyncio behind HTTP see `serving.bridge`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from greenllm.core import GreenllmError, Request, Token
from greenllm.energy.receipt import Receipt


class EngineStoppedError(GreenllmError):
    """The engine thread has stopped: no request can be answered any more."""


Feed = Callable[[Token | None], object]


@dataclass(frozen=True, slots=True)
class Pending:
    """A request in flight: its tokens so far, and the promise of its receipt.

    `feed` is called on the engine thread with every token, and with None after the last.
    """

    request: Request
    feed: Feed | None = None
    tokens: list[Token] = field(default_factory=list)
    receipt: Future[Receipt] = field(default_factory=Future)

    def __post_init__(self) -> None:
        # From now on nobody can cancel the promise, so the engine thread can always keep it.
        self.receipt.set_running_or_notify_cancel()

    def take(self, token: Token) -> None:
        """Keep a token."""
        self.tokens.append(token)
        if self.feed is not None:
            self.feed(token)

    def end(self, receipt: Receipt | None) -> None:
        """Nothing more comes; without a receipt the engine has stopped."""
        if receipt is not None:
            self.receipt.set_result(receipt)
        else:
            self.receipt.set_exception(EngineStoppedError("the engine has stopped; see the log"))
        if self.feed is not None:
            self.feed(None)


class Inbox:
    """Requests in flight by id; the listener of an `EngineLoop`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._pending: dict[str, Pending] = {}

    def expect(self, requests: Sequence[Request], feed: Feed | None = None) -> list[Pending]:
        """Take results for requests that are about to go to the engine.

        Raises:
            EngineStoppedError: nothing comes any more.
        """
        pending = [Pending(request, feed) for request in requests]
        with self._lock:
            if self._stopped:
                raise EngineStoppedError("this LLM is closed, or its engine has stopped")
            self._pending |= {one.request.request_id: one for one in pending}
        return pending

    def stamp(self, receipt: Receipt) -> Receipt:
        """There is no HTTP status to add."""
        return receipt

    def publish(self, tokens: Sequence[Token], receipts: Sequence[Receipt]) -> None:
        """Deliver; a receipt that becomes final later goes to the ledger alone."""
        for token in tokens:
            if pending := self._pending.get(token.request_id):
                pending.take(token)
        for receipt in receipts:
            with self._lock:
                done = self._pending.pop(receipt.request_id, None)
            if done is not None:
                done.end(receipt)

    def failed(self) -> None:
        """Tell everybody that waits, and those who would."""
        with self._lock:
            self._stopped, left = True, list(self._pending.values())
            self._pending.clear()
        for pending in left:
            pending.end(None)
