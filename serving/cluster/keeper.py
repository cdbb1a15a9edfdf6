"""Keeps the one ledger of all replicas, and books what a lost one can book no more.

Contract: replicas send receipts and totals, which are written as in a ledger of their own, and
with them what to book should they die after that. `reap` looks who has died without closing its
books and does so: open requests become final receipts with outcome `lost`, so that sums hold. A
replica that was given up and speaks again is not listened to. Knows nothing of Ray: who is alive is
asked of `is_alive`.

Not covered: what a lost replica used in its last quarter of a second, which is on nobody's bill,
and requests that it had for no longer, which leave no receipt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from greenllm.core import Receipt
from greenllm.energy.account import Totals
from greenllm.energy.ledger import Ledger, Row

log = logging.getLogger(__name__)
Books = tuple[Sequence[Receipt], Totals]


@dataclass(slots=True)
class _Open:
    """A replica's session: who it is, its totals, and what to book if it dies."""

    replica: str
    totals: Totals
    if_lost: Books


class Keeper:
    """See the module. Used by one caller at a time."""

    def __init__(self, path: Path, is_alive: Callable[[str], bool]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(path)
        self._is_alive = is_alive
        self._open: dict[str, _Open] = {}
        self._closed = Totals()
        self._adapters: dict[str, str] = {}

    def open_session(
        self, session_id: str, replica: str, method: str, measured: bool, parameters: int
    ) -> None:
        """A replica begins; whoever it replaces is given up."""
        self.reap()
        self._ledger.open_session(
            session_id, method=method, measured=measured, parameters=parameters
        )
        self._open[session_id] = _Open(replica, Totals(), ((), Totals()))

    def record(self, session_id: str, books: Books, if_lost: Books, closed: bool) -> None:
        """Write receipts and totals; see `Ledger.record`."""
        session = self._open.get(session_id)
        if session is None:
            log.warning("session %s has been given up; what it sends is not booked", session_id)
            return
        receipts, totals = books
        self._ledger.record(session_id, receipts, totals, closed=closed)
        session.totals, session.if_lost = totals, if_lost
        if closed:
            self._close(session_id)

    def reap(self) -> list[str]:
        """Close the books of replicas that are gone; the ids of the requests that were lost."""
        found: list[str] = []
        for session_id, session in list(self._open.items()):
            if self._is_alive(session.replica):
                continue
            receipts, totals = session.if_lost
            log.warning("replica %s is gone, with %d requests", session.replica, len(receipts))
            self._ledger.record(session_id, receipts, totals, closed=True)
            session.totals = totals
            self._close(session_id)
            found += [receipt.request_id for receipt in receipts]
        return found

    def _close(self, session_id: str) -> None:
        session = self._open.pop(session_id)
        self._closed = added(self._closed, session.totals)

    def totals(self) -> Totals:
        """Of all replicas since the keeper began."""
        result = self._closed
        for session in self._open.values():
            result = added(result, session.totals)
        return result

    def receipt(self, request_id: str) -> Receipt | None:
        """See `Ledger.receipt`."""
        return self._ledger.receipt(request_id)

    def sums(
        self, group_by: str | None, since_s: float, until_s: float, key: str | None
    ) -> list[Row]:
        """See `Ledger.sums`."""
        return self._ledger.sums(group_by, since_s=since_s, until_s=until_s, key=key)

    def adapters(self) -> dict[str, str]:
        """Adapters that every replica should know: name and folder."""
        return dict(self._adapters)

    def set_adapter(self, name: str, folder: str | None) -> None:
        """Replicas that begin later should know an adapter too, or no longer (None)."""
        if folder is None:
            self._adapters.pop(name, None)
        else:
            self._adapters[name] = folder

    def close(self) -> None:
        """Close the file."""
        self.reap()
        self._ledger.close()


def added(one: Totals, other: Totals) -> Totals:
    """The sum of two."""
    return Totals(*(getattr(one, f.name) + getattr(other, f.name) for f in fields(Totals)))
