"""Jobs as they are kept: the recipe's file says what was meant, whatever is in it."""

import errno
import io
import shutil
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.bill.journal import RunJournal
from finetune.bill.outcome import RunError, RunOutcome, TrainingBill
from finetune.bill.phases import PhaseEnergy
from finetune.files import JOURNAL, OUTCOME
from serving.jobs import store as store_module
from serving.jobs.files import FileStore
from serving.jobs.quota import Quota, QuotaError
from serving.jobs.runner import JobRunner
from serving.jobs.store import (
    Job,
    JobStore,
    adapter_folder,
    model_name,
    new_job_id,
    next_of,
    toml_of,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"))
VALUE = st.one_of(
    TEXT, st.booleans(), st.integers(-(2**40), 2**40), st.lists(TEXT, max_size=3),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip


@given(VALUE)
def test_a_recipe_is_read_as_it_was_written(value: object) -> None:
    assert tomllib.loads(toml_of({"name": value})) == {"name": value}


def job(**fields: object) -> Job:
    given_: dict[str, object] = {
        "id": new_job_id(), "model": "some/model-v1.5", "training_file": "file-1",
        "validation_file": None, "suffix": "notes", "seed": 1, "hyperparameters": {}, "recipe": {},
        "metadata": None, "created_at": 5,
    }  # fmt: skip
    return Job(**{**given_, **fields})  # type: ignore[arg-type]


def test_a_name_says_the_base_the_suffix_and_the_job() -> None:
    made = job(id="ftjob-0123456789abcdef01234567")
    assert model_name(made) == "ft:model-v1.5:notes:01234567"
    assert model_name(job(id=made.id, suffix=None)) == "ft:model-v1.5::01234567"


def test_models_are_found_by_their_folders_after_a_restart(tmp_path: Path) -> None:
    store, made = JobStore(tmp_path), job()
    store.add(made)
    assert store.models() == {}
    name = model_name(made)
    store.change(made.id, status="succeeded", fine_tuned_model=name)
    assert JobStore(tmp_path).models() == {adapter_folder(name): name}


def test_a_job_is_seen_once_its_folder_is_filled(tmp_path: Path) -> None:
    store, made, broken = JobStore(tmp_path), job(), job()

    def fill(folder: Path) -> None:
        (folder / "recipe.toml").write_text("x = 1")
        assert store.all() == []

    def full(folder: Path) -> None:
        raise OSError("no space left")

    store.add(made, fill)
    assert store.all() == [made]
    with pytest.raises(OSError, match="no space"):
        store.add(broken, full)
    assert not store.folder(broken.id).exists()


COMPLETED = RunOutcome("completed")
INTERRUPTED = RunOutcome("stopped", "interrupt")
BILL = TrainingBill(3.0, {"training": 3.0}, 1.0, None, "m", False, None, 1.0)


def ran(tmp_path: Path, outcome: RunOutcome, **fields: Any) -> Job:
    """A job whose process has left its outcome, and weights where it would."""
    store, made = JobStore(tmp_path / "jobs"), job(**{"status": "running", **fields})
    store.add(made)
    output = store.output(made.id)
    output.mkdir()
    replace(outcome, tokens=5, bill=BILL).write(output / OUTCOME)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (output / name).write_text("{}")
    return made


def runner_of(tmp_path: Path) -> JobRunner:
    store = JobStore(tmp_path / "jobs")
    return JobRunner(store, tmp_path / "adapters", lambda pid, is_training: None)


def stands(tmp_path: Path, made: Job) -> Job:
    found = JobStore(tmp_path / "jobs").find(made.id)
    assert found is not None
    return found


def test_a_job_whose_end_cannot_be_kept_has_failed(tmp_path: Path) -> None:
    made, runner = ran(tmp_path, COMPLETED), runner_of(tmp_path)
    (runner.store.output(made.id) / "adapter_model.safetensors").unlink()
    runner.turn()
    ended = stands(tmp_path, made)
    assert (ended.status, ended.pid) == ("failed", None)
    assert "cannot be kept" in (ended.error or "")


@pytest.mark.parametrize("fields", [{}, {"wanted": "pause"}, {"status": "queued"}])
def test_what_was_done_while_the_server_was_away_is_a_model(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    made, runner = ran(tmp_path, COMPLETED, **fields), runner_of(tmp_path)
    runner.turn()
    ended = stands(tmp_path, made)
    assert (ended.status, ended.wanted, ended.trained_tokens) == ("succeeded", None, 5)
    assert (tmp_path / "adapters" / adapter_folder(ended.fine_tuned_model or "")).is_dir()


def test_steps_made_while_the_server_was_away_are_told_once(tmp_path: Path) -> None:
    made, runner = ran(tmp_path, COMPLETED), runner_of(tmp_path)
    runner.store.note(made.id, "step 1: loss 0.9000", {"step": 1, "train_loss": 0.9})
    journal = RunJournal(losses=((1, 0.9), (2, 0.8), (3, 0.7)), scores=((3, 0.6),))
    journal.write(runner.store.output(made.id) / JOURNAL)
    runner.turn()
    told = [event["data"] for event in runner.store.events(made.id)[::-1] if event.get("data")]
    assert [data["step"] for data in told] == [1, 2, 3]
    assert told[-1]["valid_loss"] == 0.6
    assert stands(tmp_path, made).status == "succeeded"


@pytest.mark.parametrize(
    ("wanted", "status"), [(None, "queued"), ("pause", "paused"), ("cancel", "cancelled")]
)
def test_what_was_interrupted_by_the_stop_of_a_server_waits(
    tmp_path: Path, wanted: str | None, status: str
) -> None:
    made, runner = ran(tmp_path, INTERRUPTED, wanted=wanted), runner_of(tmp_path)
    runner.turn()
    assert stands(tmp_path, made).status == status


def test_an_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / OUTCOME
    assert RunOutcome.read(path) is None
    for outcome in (
        replace(INTERRUPTED, tokens=3, bill=BILL),
        RunOutcome("failed", error=RunError("why", "rank")),
    ):
        outcome.write(path)
        assert RunOutcome.read(path) == outcome
    path.write_text('{"status": "completed"}')
    assert RunOutcome.read(path) is None


def test_a_full_disk_delays_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, runner = ran(tmp_path, COMPLETED), runner_of(tmp_path)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy", full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            runner.turn()
        assert stands(tmp_path, made).status == "running"
    monkeypatch.undo()
    runner.turn()
    assert stands(tmp_path, made).status == "succeeded"


def test_an_event_that_cannot_be_written_changes_no_status(tmp_path: Path) -> None:
    made, runner = ran(tmp_path, COMPLETED), runner_of(tmp_path)
    events = runner.store.folder(made.id) / "events.jsonl"
    events.unlink()
    events.mkdir()
    runner.turn()
    assert stands(tmp_path, made).status == "succeeded"


def test_half_an_event_hides_no_other(tmp_path: Path) -> None:
    store, made = JobStore(tmp_path), job()
    store.add(made)
    with (store.folder(made.id) / "events.jsonl").open("a") as file:
        file.write('{"half": {"a": 1}\n')
    store.note(made.id, "after")
    assert [event["message"] for event in store.events(made.id)] == ["after", "created"]


def test_a_file_that_cannot_be_kept_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path)

    def full(self: Path, *args: object, **kwargs: object) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        store.add(io.BytesIO(b"{}"), "a.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_job_file_hides_no_other_job(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    first, second = job(), job(created_at=6)
    store.add(first)
    store.add(second)
    (store.folder(first.id) / "job.json").write_text("{half")
    assert store.all() == [second]
    assert store.find("../../etc/passwd") is None


def test_owners_take_turns() -> None:
    ran_ = [job(owner="ada", started_at=9, status="succeeded"), job(owner="bob", started_at=5)]
    ada, bob = job(owner="ada", created_at=1), [job(owner="bob", created_at=i) for i in (3, 2)]
    assert next_of([ada, *bob], [ada, *bob, *ran_]) is bob[1]
    new = job(owner="eve", created_at=8)
    assert next_of([ada, *bob, new], [ada, *bob, new, *ran_]) is new
    assert next_of(bob, bob) is bob[1]


def test_only_the_newest_ended_jobs_of_an_owner_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MOST_ENDED", 2)
    store = JobStore(tmp_path, Quota(1, 1, num_jobs=1))
    ended = [job(owner="ada", created_at=i, status="failed") for i in range(3)]
    other = job(owner="bob", status="failed")
    for made in (*ended, other):
        store.add(made)
    assert {found.id for found in store.all()} == {other.id, *(made.id for made in ended[1:])}
    store.add(job(owner="ada", created_at=9))
    with pytest.raises(QuotaError, match="1 fine-tuning jobs wait"):
        store.add(job(owner="ada", created_at=10))
    store.add(job(owner="bob", created_at=10))


def test_files_that_come_at_once_keep_to_the_quota(tmp_path: Path) -> None:
    store = FileStore(tmp_path, Quota(num_files=3, num_bytes=100, num_jobs=1))

    def add(_: int) -> bool:
        try:
            store.add(io.BytesIO(b"x"), "a", "ada")
        except QuotaError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(8))) == 3
    assert not list(tmp_path.glob("*.part"))
    assert len(list(tmp_path.iterdir())) == 6, "three files, each with what is known of it"
    assert store.add(io.BytesIO(b"x"), "b", "bob").owner == "bob"


def test_owners_are_told_each_joule_of_their_training_once(tmp_path: Path) -> None:
    """As it goes on, after a pause, and when it was done while the server was away."""
    spent: list[tuple[str, float, float]] = []

    def runner() -> JobRunner:
        return JobRunner(
            JobStore(tmp_path / "jobs"), tmp_path / "adapters", lambda pid, is_training: None,
            spend=lambda *told: spent.append(told),
        )  # fmt: skip

    made = ran(tmp_path, COMPLETED, owner="ada", energy={"energy_joules": 1.0}, finished_at=None)
    store = JobStore(tmp_path / "jobs")
    journal = RunJournal(energy={"training": PhaseEnergy(active_j=2.5)})
    journal.write(store.output(made.id) / JOURNAL)
    assert store.spent_since(0) == {"ada": (1.0, 0.0)}
    runner().turn()
    assert stands(tmp_path, made).status == "succeeded"
    assert sum(joules for _, joules, _ in spent) == 2.0, "of the bill's three, one was told before"
    assert sum(grams for _, _, grams in spent) == 1.0
    assert {owner for owner, *_ in spent} == {"ada"}
    ended_s = stands(tmp_path, made).finished_at or 0
    assert store.spent_since(ended_s) == {"ada": (3.0, 1.0)}
    assert store.spent_since(ended_s + 1) == {}
