"""What `greenllm report` counts: one pass over the receipts of a period, and the sessions.

Contract: sums are those of `Ledger.sums`, plus what it leaves out: FLOPs, running time, and the
tokens of metered requests alone, so that joules per token are not made small by tokens nobody
metered. A sum of nothing known is None. Memory is that of the busiest hour.

Not covered: energy from before a session's first reading and after its last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from greenllm.config import ConfigError
from greenllm.energy.account.account import CONSERVATION_TOLERANCE
from greenllm.energy.ledger import GROUPS, Ledger, Session
from greenllm.energy.receipt import Receipt

FOREVER_S = 1e12
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Period:
    """From `since_s` to just before `until_s`, in Unix seconds."""

    since_s: float = 0.0
    until_s: float = FOREVER_S

    def __post_init__(self) -> None:
        if self.since_s >= self.until_s:
            raise ConfigError("--since must be before --until")


@dataclass(slots=True)
class Sums:
    """Sums of a group of requests; None where none of them knew."""

    group: str | None = None
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    active_j: float | None = None
    idle_j: float | None = None
    total_j: float | None = None
    gco2e: float | None = None
    unmetered: int = 0
    flops: float | None = None
    running_s: float | None = None
    metered_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    draft_j: float | None = None

    def add(self, receipt: Receipt) -> None:
        """Count one request."""
        self.requests += 1
        self.prompt_tokens += receipt.prompt_tokens
        self.completion_tokens += receipt.completion_tokens
        self.drafted_tokens += receipt.drafted_tokens
        self.accepted_tokens += receipt.accepted_tokens
        if receipt.status != "final":
            self.unmetered += 1
            return
        self.gco2e = _plus(self.gco2e, receipt.gco2e)
        self.flops = _plus(self.flops, receipt.flops)
        self.active_j = _plus(self.active_j, receipt.active_j)
        self.draft_j = _plus(self.draft_j, receipt.draft_j)
        self.idle_j = _plus(self.idle_j, receipt.idle_j)
        self.total_j = _plus(self.total_j, receipt.total_j)
        self.running_s = _plus(self.running_s, receipt.resident_s)
        self.metered_tokens += receipt.completion_tokens

    @property
    def joules_per_token(self) -> float | None:
        """Total joules per completion token of the metered requests."""
        return _ratio(self.total_j, self.metered_tokens)

    @property
    def acceptance(self) -> float | None:
        """Accepted draft tokens over all draft tokens."""
        return _ratio(self.accepted_tokens, self.drafted_tokens)

    @property
    def avg_power_w(self) -> float | None:
        """Total joules over the machine's time."""
        return _ratio(self.total_j, self.running_s)


@dataclass(frozen=True, slots=True)
class SessionAccount:
    """A session, and what its final receipts add up to."""

    session: Session
    receipts_j: float

    @property
    def adds_up(self) -> bool:
        """Whether the meter's joules are all booked, and the receipts are what was booked."""
        totals = self.session.totals
        tolerance_j = CONSERVATION_TOLERANCE * max(abs(totals.meter_j), 1e-9)
        matches = abs(self.receipts_j - totals.requests_j) <= tolerance_j
        return matches and totals.residual <= CONSERVATION_TOLERANCE


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is printed and exported.

    `parameters` is the size of the model, where all metered requests had one of the same size.
    """

    period: Period
    group_by: str
    groups: tuple[Sums, ...]
    total: Sums
    accounts: tuple[SessionAccount, ...]
    parameters: int | None


def check_group(group_by: str) -> None:
    """Refuse a group nobody knows.

    Raises:
        ConfigError: with the choices.
    """
    if group_by not in GROUPS:
        raise ConfigError(f"--group-by must be one of {', '.join(GROUPS)}, not {group_by!r}")


def slices(ledger: Ledger, period: Period) -> list[Period]:
    """Cut a period at the full hours in which there are requests; nothing is left out."""
    hours = ledger.sums("hour", since_s=period.since_s, until_s=period.until_s)
    starts = [datetime.fromisoformat(row.group).timestamp() for row in hours if row.group]
    inside = [at_s for at_s in starts if period.since_s < at_s < period.until_s]
    return [Period(*pair) for pair in pairwise([period.since_s, *inside, period.until_s])]


def collect(
    ledger: Ledger, period: Period, group_by: str, see: Callable[[list[Receipt]], None]
) -> Report:
    """Sum up a period; `see` is shown the receipts as they are read."""
    groups: dict[str | None, Sums] = {}
    total = Sums()
    for batch in _batches(ledger, period):
        for receipt in batch:
            group = group_of(receipt, group_by)
            groups.setdefault(group, Sums(group)).add(receipt)
            total.add(receipt)
        see(batch)
    ordered = sorted(groups.values(), key=lambda sums: (sums.group is not None, sums.group))
    accounts = _accounts(ledger, period)
    sizes = ledger.model_sizes(since_s=period.since_s, until_s=period.until_s)
    only = sizes.pop() if len(sizes) == 1 else None
    return Report(period, group_by, tuple(ordered), total, accounts, only)


def group_of(receipt: Receipt, group_by: str) -> str | None:
    """The group a receipt falls into; None where it has none, such as no adapter."""
    if group_by == "hour":
        # SQLite, which groups for `Ledger.sums`, keeps milliseconds.
        at_s = round(receipt.created_s, 3)
        return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:00Z")
    value = getattr(receipt, group_by)
    return None if value is None else str(value)


def _batches(ledger: Ledger, period: Period) -> Iterator[list[Receipt]]:
    for part in slices(ledger, period):
        yield ledger.receipts(since_s=part.since_s, until_s=part.until_s)


def _accounts(ledger: Ledger, period: Period) -> tuple[SessionAccount, ...]:
    """The period's sessions with their receipts, read again while a server writes in between."""
    for _ in range(_TRIES):
        sessions = ledger.sessions()
        sums_j = [ledger.session_sum_j(session.session_id) for session in sessions]
        if ledger.sessions() == sessions:
            break
    pairs = zip(sessions, sums_j, strict=True)
    return tuple(SessionAccount(*pair) for pair in pairs if _overlaps(pair[0], period))


def _overlaps(session: Session, period: Period) -> bool:
    return session.started_s < period.until_s and session.updated_s >= period.since_s


def _plus(sum_so_far: float | None, value: float | None) -> float | None:
    return sum_so_far if value is None else (sum_so_far or 0.0) + value


def _ratio(value: float | None, count: float | None) -> float | None:
    return None if value is None or not count else value / count
