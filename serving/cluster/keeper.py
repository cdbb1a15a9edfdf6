"""Keeps the one ledger of all replicas, and closes the accounts of those that died.

Contract: replicas send receipts and totals, which are written as in a ledger of their own, and
with them what has to be booked if they die after that. `reap` finds replicas that died without
closing their accounts and closes these: open requests become final receipts with outcome `lost`,
so that sums hold. Messages of a replica that was given up are ignored. Nothing here knows Ray:
`is_alive` says which replicas are alive. A keeper that is started again continues with the file:
its open sessions, what they would lose, its adapters.

Not covered: the joules of a lost replica since its last message, a quarter of a second, which are
on no receipt; requests that it had for a shorter time, which leave none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import GroupSums, Ledger
from greenllm.energy.ledger_schema import LedgerError
from greenllm.energy.receipt import Receipt

log = logging.getLogger(__name__)
Books = tuple[Sequence[Receipt], Totals]


class Keeper:
    """See the module. Used by one caller at a time."""

    def __init__(self, path: Path, run: str, is_alive: Callable[[str], bool]) -> None:
        """Open the ledger; `run` is the deployment, whose sessions' ids all begin with it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(path)
        self._run = run
        self._is_alive = is_alive
        self._open: dict[str, str] = {}
        self._adapters_file = path.parent / f"adapters-{run}.json"
        self._adapters: dict[str, str] = {}
        if self._adapters_file.exists():
            self._adapters = json.loads(self._adapters_file.read_text(encoding="utf-8"))

    def open_session(
        self, session_id: str, replica: str, method: str, measured: bool, parameters: int
    ) -> None:
        """A replica begins; whoever it replaces is given up."""
        self.reap()
        self._ledger.open_session(
            session_id, method=method, measured=measured, parameters=parameters, is_own=False
        )
        self._open[session_id] = replica

    def record(
        self,
        session_id: str,
        replica: str,
        books: Books,
        if_lost: Sequence[Receipt] | None,
        closed: bool,
    ) -> None:
        """Write receipts and totals; see `Ledger.record`."""
        if session_id not in self._open and not self._adopts(session_id, replica):
            log.warning("session %s has been given up; what it sends is not booked", session_id)
            return
        receipts, totals = books
        self._ledger.record(session_id, receipts, totals, closed=closed, if_lost=if_lost)
        if closed:
            del self._open[session_id]

    def _adopts(self, session_id: str, replica: str) -> bool:
        """Take a session that an earlier keeper of this ledger has opened and nobody has closed."""
        found = {one.session_id for one in self._ledger.sessions() if not one.closed}
        if session_id in found:
            self._open[session_id] = replica
        return session_id in found

    def reap(self) -> list[str]:
        """Close the books of replicas that are gone; the ids of the requests that were lost."""
        found: list[str] = []
        for session_id, replica in list(self._open.items()):
            if self._is_alive(replica):
                continue
            try:
                lost = self._ledger.close_lost(session_id)
            except LedgerError as error:
                log.error("%s; it is closed later", error)
                continue
            log.warning("replica %s is gone, with %d requests", replica, len(lost))
            del self._open[session_id]
            found += lost
        return found

    def totals(self) -> Totals:
        """Of all replicas of this deployment, those that are gone too."""
        result = Totals()
        for session in self._ledger.sessions():
            if session.session_id.startswith(self._run):
                result = added(result, session.totals)
        return result

    def receipt(self, request_id: str) -> Receipt | None:
        """See `Ledger.receipt`."""
        return self._ledger.receipt(request_id)

    def sums(
        self, group_by: str | None, since_s: float, until_s: float, key: str | None
    ) -> list[GroupSums]:
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
        self._adapters_file.write_text(json.dumps(self._adapters), encoding="utf-8")

    def close(self) -> None:
        """Close the books that are open yet, and the file."""
        self.reap()
        for session in self._ledger.sessions():
            if session.session_id.startswith(self._run) and not session.closed:
                self._ledger.close_lost(session.session_id)
        self._ledger.close()
        self._adapters_file.unlink(missing_ok=True)


def added(one: Totals, other: Totals) -> Totals:
    """The sum of two."""
    return Totals(*(getattr(one, f.name) + getattr(other, f.name) for f in fields(Totals)))
