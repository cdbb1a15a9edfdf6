"""What was promised, held against what clients were told and what the ledger says.

Contract: a request is accepted once its client has a status or an id; each that has an id has one
row, in one of the files that the ledger was. An answer is right, or its trouble is one that the
fault permits. The joules of a session's final rows are those of its totals, which add up to what
the meter counted. Each promise that does not hold is a sentence in `broken`.

Not covered: whether joules are true (`evals.studies.truth`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from evals.chaos.asking import CUT, LEFT, SILENT, Question, Reply
from evals.chaos.faults import Fault
from evals.chaos.probe import Health
from evals.chaos.world import Phase
from greenllm.energy.account.totals import CONSERVATION_TOLERANCE
from greenllm.energy.ledger import Ledger, Session
from greenllm.energy.receipt import Receipt

_UNANSWERED = (CUT, SILENT, LEFT)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault in the table: counts of requests, the worst of `/health`, promises broken."""

    fault: str
    accepted: int
    answered: int
    troubles: Mapping[str, int]
    wrong: int
    without_one_row: int
    health: Health
    broken: list[str]


def judge(
    phase: Phase,
    fault: Fault,
    right: Mapping[Question, bytes],
    rows: Mapping[str, int],
    health: Health,
    bound_s: float,
) -> Outcome:
    """Hold a phase against its promises; `rows` counts those of each request id."""
    accepted = [reply for reply in phase.replies if reply.is_accepted]
    wrong = sum(is_wrong(reply, right[question]) for question, reply in phase.bystanders)
    odd = [
        reply.request_id or "" for reply in accepted
        if reply.needs_row and rows.get(reply.request_id or "", 0) != 1
    ]  # fmt: skip
    broken = [*phase.broken, *_broken_to_bystanders(phase, fault, wrong)]
    if odd:
        broken.append(f"each accepted request has one row: {len(odd)} have not, such as {odd[0]}")
    if not fault.pauses and 0 < bound_s < (health.worst_s or 0.0):
        broken.append(f"/health answers within {bound_s:g} s: it took {health.worst_s:.3f} s")
    return Outcome(
        fault=phase.name,
        accepted=len(accepted),
        answered=sum(reply.trouble not in _UNANSWERED for reply in accepted),
        troubles=dict(Counter(r.trouble for r in phase.replies if r.trouble is not None)),
        wrong=wrong,
        without_one_row=len(odd),
        health=health,
        broken=broken,
    )


def is_wrong(reply: Reply, right: bytes) -> bool:
    """Whether it claims to be an answer, and is not the right one."""
    return reply.trouble is None and reply.answer != right


def _broken_to_bystanders(phase: Phase, fault: Fault, wrong: int) -> Iterable[str]:
    troubles = Counter(r.trouble for _, r in phase.bystanders if r.trouble is not None)
    if wrong:
        yield f"answers are right: {wrong} were not"
    for trouble, count in sorted(troubles.items()):
        if trouble not in fault.permits:
            yield f"bystanders get their answers: {count} ended with: {trouble}"
    if not any(reply.answer is not None for _, reply in phase.bystanders) and not troubles:
        yield "bystanders get their answers: none was there"


@dataclass(slots=True)
class Books:
    """What all files of a ledger say together."""

    final: dict[str, int] = field(default_factory=dict)
    other: dict[str, int] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)

    def rows(self) -> dict[str, int]:
        """How many rows a request has; one that became final elsewhere has that one."""
        return {**self.other, **self.final}

    def add(self, path: Path) -> None:
        """Read a file."""
        with closing(Ledger(path, read_only=True)) as ledger:
            for receipt in ledger.receipts():
                self._add_row(receipt)
            for session in ledger.sessions():
                name = session.session_id
                self.joules[name] = self.joules.get(name, 0.0) + ledger.session_sum_j(name)
                known = self.sessions.get(name)
                if known is None or known.updated_s <= session.updated_s:
                    self.sessions[name] = session

    def _add_row(self, receipt: Receipt) -> None:
        kind = self.final if receipt.status == "final" else self.other
        kind[receipt.request_id] = kind.get(receipt.request_id, 0) + 1


def read_books(paths: Sequence[Path]) -> Books:
    """What is in the files that there are.

    Raises:
        LedgerError: one of them cannot be read.
    """
    books = Books()
    for path in paths:
        if path.exists():
            books.add(path)
    return books


@dataclass(frozen=True, slots=True)
class SessionBalance:
    """A session's residuals, relative: totals against the meter, rows against the totals."""

    session_id: str
    closed: bool
    meter_j: float
    residual: float
    rows_residual: float

    @property
    def broken(self) -> list[str]:
        """Promises that it does not keep."""
        found = []
        if not self.closed:
            found.append(f"session {self.session_id} is closed at the end")
        for what, residual in (("totals", self.residual), ("rows", self.rows_residual)):
            if not residual <= CONSERVATION_TOLERANCE:
                found.append(f"joules of session {self.session_id}: {what} are off by {residual}")
        return found


def balances(books: Books) -> list[SessionBalance]:
    """Every session's, in the order in which they came up in the files."""
    return [_balance(session, books.joules[name]) for name, session in books.sessions.items()]


def _balance(session: Session, rows_j: float) -> SessionBalance:
    totals = session.totals
    off = abs(rows_j - totals.requests_j) / max(abs(totals.requests_j), 1e-9)
    return SessionBalance(session.session_id, session.closed, totals.meter_j, totals.residual, off)
