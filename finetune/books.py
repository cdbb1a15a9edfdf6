"""What a run has spent, kept where a run that goes on after a crash finds it.

Contract: the journal is written after every part of a run, so that a crash forgets at most the part
it happened in; between parts, training writes it about once a second. What was spent after the
checkpoint that a run goes on from is booked as `lost`, but for trials, whose results stay, and for
what is not billed.

Not covered: joules of a process that was killed, since its last entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.checkpoints import MARKER, SavingError, read_json, write_json
from finetune.phases import NOT_BILLED, Energy, Phase, PhaseAccount
from finetune.processes import Processes

_STAYS: frozenset[Phase] = NOT_BILLED | {"trials"}
_NOTHING_TRAINED: Mapping[str, Any] = {
    "seen": {"steps": 0, "tokens": 0, "padding": 0, "learnt": 0},
    "predicted_j": None,
    "losses": [],
    "scores": [],
}


@dataclass(frozen=True, slots=True)
class Books:
    """What a run has spent so far, on disk; the main process keeps it."""

    path: Path
    account: PhaseAccount
    processes: Processes

    def take_over(self, checkpoint: Path | None, is_resumed: bool) -> None:
        """Book what earlier processes of this run have spent."""
        if is_resumed and self.processes.is_main:
            kept = None if checkpoint is None else read_json(checkpoint / MARKER)
            take_over(self.account, kept, read_json(self.path))

    def write(self) -> None:
        """Bring the journal's joules up to date; what it says of training stays."""
        if self.processes.is_main:
            self.account.read()
            known = {**_NOTHING_TRAINED, **(read_json(self.path) or {})}
            write_journal(self.path, {**known, **spent_state(self.account)})


def spent_state(account: PhaseAccount) -> dict[str, Any]:
    """Joules by phase, as journals and checkpoints hold them."""
    spent = {phase: asdict(energy) for phase, energy in account.by_phase().items()}
    return {"energy": spent, "is_known": account.is_known}


def write_journal(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the journal.

    Raises:
        SavingError: it cannot be written.
    """
    try:
        write_json(path, state)
    except OSError as error:
        raise SavingError(f"cannot write {path}: {error}") from error


def take_over(
    account: PhaseAccount,
    checkpoint: Mapping[str, Any] | None,
    journal: Mapping[str, Any] | None,
) -> None:
    """Book what was spent before this process, up to the checkpoint and after it."""
    if not all(found["is_known"] for found in (checkpoint, journal) if found is not None):
        account.give_up("the meter failed before the run was resumed")
    kept, later = _energies(checkpoint), _energies(journal or checkpoint)
    for phase, energy in kept.items():
        account.add(phase, energy)
    for phase, energy in later.items():
        more = energy.minus(kept.get(phase, Energy()))
        if more.duration_s > 0:
            account.add(phase if phase in _STAYS else "lost", more)


def _energies(state: Mapping[str, Any] | None) -> dict[Phase, Energy]:
    if state is None:
        return {}
    return {phase: Energy(**found) for phase, found in state["energy"].items()}
