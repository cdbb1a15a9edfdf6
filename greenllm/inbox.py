"""Where the engine thread leaves results for the callers of `greenllm.LLM`.

Contract: every request that is expected ends with a receipt, or with `EngineStoppedError`.
Callers may be in any thread. For asyncio behind HTTP see `serving.bridge`.
"""

from __future__ import annotations

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
        self._pending: dict[str, Pending] = {}

    def expect(self, pending: Pending) -> None:
        """Take results for a request that is about to go to the engine."""
        self._pending[pending.request.request_id] = pending

    def stamp(self, receipt: Receipt) -> Receipt:
        """There is no HTTP status to add."""
        return receipt

    def publish(self, tokens: Sequence[Token], receipts: Sequence[Receipt]) -> None:
        """Deliver; a receipt that becomes final later goes to the ledger alone."""
        for token in tokens:
            if pending := self._pending.get(token.request_id):
                pending.take(token)
        for receipt in receipts:
            if pending := self._pending.pop(receipt.request_id, None):
                pending.end(receipt)

    def failed(self) -> None:
        """Tell everybody that waits."""
        while self._pending:
            _, pending = self._pending.popitem()
            pending.end(None)
