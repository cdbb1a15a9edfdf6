"""How far a run has come and what it has spent, kept where a run that goes on finds it.

Contract: the journal is written after every part of a run, so that a crash forgets at most the part
it happened in; between parts, training writes it about once a second. A checkpoint's marker holds
the journal of its moment. What was spent after the checkpoint that a run goes on from is booked as
`lost`, but for trials, whose results stay, and for what is not billed.

Not covered: joules of a process that was killed, since its last entry.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from finetune.bill.phases import BILLED, LEARNING, NOT_BILLED, PhaseAccount, PhaseEnergy, RunPhase
from finetune.files import read_json, write_json

_STAYS: frozenset[RunPhase] = NOT_BILLED | {"trials"}
Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What has been trained on; `padding` was computed too, for nothing."""

    steps: int = 0
    tokens: int = 0
    padding: int = 0
    learnt: int = 0

    def plus(self, tokens: int, padding: int, learnt: int) -> Seen:
        """With a batch more."""
        return Seen(self.steps, self.tokens + tokens, self.padding + padding, self.learnt + learnt)


@dataclass(frozen=True, slots=True)
class RunJournal:
    """One entry, which replaces the one before.

    `is_known` says whether the meter counted every joule; `predicted_j` is the forecast of the
    whole bill. `losses` (training) and `scores` (validation) are pairs of a step and its loss.
    """

    seen: Seen = Seen()
    energy: Mapping[RunPhase, PhaseEnergy] = field(default_factory=dict)
    is_known: bool = True
    predicted_j: float | None = None
    losses: Curve = ()
    scores: Curve = ()

    @classmethod
    def read(cls, path: Path) -> RunJournal | None:
        """What a file holds; None where there is none that can be read."""
        found = read_json(path)
        try:
            return None if found is None else cls(
                Seen(**found["seen"]),
                {phase: PhaseEnergy(**spent) for phase, spent in found["energy"].items()},
                found["is_known"],
                found["predicted_j"],
                tuple((step, loss) for step, loss in found["losses"]),
                tuple((step, loss) for step, loss in found["scores"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def by_phase_j(self) -> dict[RunPhase, float | None]:
        """Joules of every phase that is billed; None where the meter failed."""
        return {
            phase: spent.total_j if self.is_known else None
            for phase, spent in self.energy.items()
            if phase in BILLED
        }

    @property
    def total_j(self) -> float | None:
        """The bill."""
        return self._sum_j(BILLED)

    @property
    def training_j(self) -> float | None:
        """The part of it that every token learnt from costs."""
        return self._sum_j(LEARNING)

    def _sum_j(self, phases: Collection[RunPhase]) -> float | None:
        spent = (energy.total_j for phase, energy in self.energy.items() if phase in phases)
        return sum(spent, 0.0) if self.is_known else None

    def spent(self, account: PhaseAccount) -> RunJournal:
        """The same with what an account has by now."""
        return replace(self, energy=account.by_phase(), is_known=account.is_known)

    def write(self, path: Path) -> None:
        """Replace the file.

        Raises:
            SavingError: it cannot be written.
        """
        write_json(path, asdict(self))


def update(path: Path, account: PhaseAccount) -> None:
    """Bring the journal's joules up to date; what it says of training stays."""
    account.read()
    (RunJournal.read(path) or RunJournal()).spent(account).write(path)


def take_over(
    account: PhaseAccount, checkpoint: RunJournal | None, journal: RunJournal | None
) -> None:
    """Book what was spent before this process, up to the checkpoint and after it."""
    if not all(found.is_known for found in (checkpoint, journal) if found is not None):
        account.give_up("the meter failed before the run was resumed")
    kept = {} if checkpoint is None else checkpoint.energy
    later = kept if journal is None else journal.energy
    for phase, energy in kept.items():
        account.add(phase, energy)
    for phase, energy in later.items():
        more = energy.minus(kept.get(phase, PhaseEnergy()))
        if more.duration_s > 0:
            account.add(phase if phase in _STAYS else "lost", more)
