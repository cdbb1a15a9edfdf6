"""The keeper's ledger, as a replica sees it: written without waiting, read by asking.

Contract: `record` is called by the engine's thread and sends what there is; what did not arrive
(the keeper was being restarted) goes again with the next. While a keeper hangs, no more than
`_MOST_SENT` messages are under way; the rows wait here, and the oldest are dropped and counted when
there are too many. Reads wait for the keeper for half a minute.

Not covered: rows that have not arrived when the replica ends are lost with it, and logged.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayError

from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import GroupSums
from greenllm.energy.ledger_schema import LedgerError
from greenllm.energy.ledger_writer import MAX_WAITING, LedgerState
from greenllm.energy.receipt import Receipt
from serving.cluster.keeper import Books

log = logging.getLogger(__name__)
_PATIENCE_S = 30.0
_MOST_SENT = 256


class RemoteLedger:
    """See the module; the methods are those of `energy.ledger.Ledger`."""

    def __init__(self, keeper: Any, path: str) -> None:
        self.path = path
        self._keeper = keeper
        self._replica = ""
        self._sent: deque[tuple[Any, Sequence[Receipt]]] = deque()
        self._unwritten: list[Receipt] = []
        self._num_dropped = 0

    @property
    def state(self) -> LedgerState:
        """Whether the keeper takes what it is sent."""
        return LedgerState(len(self._unwritten), self._num_dropped, not self._unwritten)

    def open_session(
        self, session_id: str, replica: str, *, method: str, measured: bool, parameters: int
    ) -> None:
        """Begin a session; `replica` is the actor's name."""
        self._replica = replica
        _answer(self._keeper.open_session.remote(session_id, replica, method, measured, parameters))

    def record(
        self,
        session_id: str,
        receipts: Sequence[Receipt],
        totals: Totals | None = None,
        *,
        closed: bool = False,
        if_lost: Sequence[Receipt] | None = None,
    ) -> None:
        """Send receipts and totals, and wait only when it is the last time."""
        self._look_after(0.0)
        self._keep(receipts)
        if len(self._sent) >= _MOST_SENT and not closed:
            return
        rows, self._unwritten = self._unwritten, []
        books: Books = (rows, totals or Totals())
        ref = self._keeper.record.remote(session_id, self._replica, books, if_lost, closed)
        self._sent.append((ref, rows))
        if closed:
            self._look_after(_PATIENCE_S)

    def opened(self, session_id: str, if_lost: Receipt) -> None:
        """Nothing: what a replica has open is noted four times a second."""

    def _look_after(self, patience_s: float) -> None:
        """Forget what has arrived; keep what has not for the next time."""
        while self._sent:
            ref, rows = self._sent[0]
            done, _ = ray.wait([ref], timeout=patience_s)
            if not done:
                return
            self._sent.popleft()
            try:
                ray.get(ref)
            except RayError as error:
                self._keep(rows)
                log.error("the keeper of the ledger: %s; %d rows wait", error, len(rows))

    def _keep(self, rows: Sequence[Receipt]) -> None:
        self._unwritten += rows
        self._num_dropped += max(0, len(self._unwritten) - MAX_WAITING)
        del self._unwritten[:-MAX_WAITING]

    def receipt(self, request_id: str) -> Receipt | None:
        """One request's receipt, whichever replica made it."""
        return cast(Receipt | None, _answer(self._keeper.receipt.remote(request_id)))

    def sums(
        self,
        group_by: str | None = None,
        *,
        since_s: float = 0.0,
        until_s: float = 1e12,
        key: str | None = None,
    ) -> list[GroupSums]:
        """Sums over all replicas."""
        asked = self._keeper.sums.remote(group_by, since_s, until_s, key)
        return cast(list[GroupSums], _answer(asked))

    def totals(self) -> Totals:
        """Of all replicas of this deployment."""
        return cast(Totals, _answer(self._keeper.totals.remote()))

    def close(self) -> None:
        """Nothing is open here."""


def _answer(asked: Any) -> Any:
    """The keeper's answer.

    Raises:
        LedgerError: it does not come.
    """
    try:
        return ray.get(asked, timeout=_PATIENCE_S)
    except RayError as error:
        raise LedgerError(f"the keeper of the ledger does not answer: {error}") from error
