"""The journal: what a run that goes on takes over, and what is lost."""

from pathlib import Path

import pytest

from finetune.bill.journal import RunJournal, Seen, take_over, update
from finetune.bill.phases import PhaseAccount, PhaseEnergy
from greenllm.energy.meters.protocol import Reading, ReplayMeter


def account() -> PhaseAccount:
    return PhaseAccount(ReplayMeter([Reading(0.0, {"cpu": 0.0}), Reading(1.0, {"cpu": 1.0})]))


def spent(joules: float) -> PhaseEnergy:
    return PhaseEnergy(joules, 0.0, 0.0, joules, {"cpu": joules})


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    assert RunJournal.read(path) is None
    energy = {"training": spent(3.0), "waiting": spent(9.0), "teacher": spent(1.0)}
    journal = RunJournal(Seen(2, 90, 5, 40), energy, True, 8.0, ((1, 0.5),), ((1, 0.7),))  # type: ignore[arg-type]
    journal.write(path)
    assert RunJournal.read(path) == journal
    assert journal.by_phase_j == {"training": 3.0, "teacher": 1.0}
    assert (journal.total_j, journal.training_j) == (4.0, 4.0)
    path.write_text('{"seen": {}}')
    assert RunJournal.read(path) is None


def test_a_meter_that_failed_leaves_no_joules() -> None:
    journal = RunJournal(energy={"training": spent(3.0)}, is_known=False)
    assert (journal.total_j, journal.by_phase_j) == (None, {"training": None})


def test_an_update_leaves_what_is_said_of_training(tmp_path: Path) -> None:
    path, seen = tmp_path / "journal.json", Seen(3, 10, 0, 10)
    RunJournal(seen, losses=((3, 0.1),)).write(path)
    update(path, account())
    found = RunJournal.read(path)
    assert found is not None
    assert (found.seen, found.losses) == (seen, ((3, 0.1),))
    assert found.energy["loading"].total_j == pytest.approx(1.0)


def test_what_came_after_the_checkpoint_is_lost_but_for_trials() -> None:
    checkpoint = RunJournal(energy={"training": spent(2.0), "trials": spent(5.0)})
    later = RunJournal(energy={"training": spent(3.5), "trials": spent(6.0)})
    now = account()
    take_over(now, checkpoint, later)
    phases = {phase: energy.total_j for phase, energy in now.by_phase().items()}
    assert phases == pytest.approx({"training": 2.0, "trials": 6.0, "lost": 1.5})


@pytest.mark.parametrize("unknown", [0, 1])
def test_joules_that_were_unknown_stay_unknown(unknown: int) -> None:
    pair = [RunJournal(energy={"training": spent(1.0)}, is_known=i != unknown) for i in (0, 1)]
    now = account()
    take_over(now, *pair)
    assert not now.is_known
