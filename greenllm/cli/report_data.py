"""What `greenllm report` shows: sums of a period by group, and the sessions with their receipts.

Not covered: energy from before a session's first reading and after its last.
"""

from __future__ import annotations

from dataclasses import dataclass

from greenllm.config import ConfigError
from greenllm.energy.account.totals import CONSERVATION_TOLERANCE
from greenllm.energy.ledger import GROUPS, GroupSums, Ledger, Session
from greenllm.energy.period import parse_moment

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
    groups: tuple[GroupSums, ...]
    total: GroupSums
    accounts: tuple[SessionAccount, ...]
    parameters: int | None


def read_period(since: str | None, until: str | None) -> Period:
    """The period that two options name.

    Raises:
        ConfigError: one of them is no moment, or they are in the wrong order.
    """
    try:
        since_s = parse_moment("--since", since, 0.0)
        return Period(since_s, parse_moment("--until", until, FOREVER_S))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_group(group_by: str) -> None:
    """Refuse a group nobody knows.

    Raises:
        ConfigError: with the choices.
    """
    if group_by not in GROUPS:
        raise ConfigError(f"--group-by must be one of {', '.join(GROUPS)}, not {group_by!r}")


def collect(ledger: Ledger, period: Period, group_by: str) -> Report:
    """Sum up a period."""
    since_s, until_s = period.since_s, period.until_s
    groups = ledger.sums(group_by, since_s=since_s, until_s=until_s)
    (total,) = ledger.sums(since_s=since_s, until_s=until_s) or [GroupSums()]
    sizes = ledger.model_sizes(since_s=since_s, until_s=until_s)
    only = sizes.pop() if len(sizes) == 1 else None
    return Report(period, group_by, tuple(groups), total, _accounts(ledger, period), only)


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
