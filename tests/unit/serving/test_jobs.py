"""Jobs as they are kept: the recipe's file says what was meant, whatever is in it."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.job_runner import JobRunner
from serving.jobs import Job, JobStore, adapter_folder, model_name, new_job_id, toml_of

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


def test_a_job_whose_end_cannot_be_kept_has_failed(tmp_path: Path) -> None:
    store, made = JobStore(tmp_path / "jobs"), job(status="running")
    store.add(made)
    store.output(made.id).mkdir()
    energy = {
        "total_j": 1.0, "joules_per_training_token": 1.0, "by_phase": {}, "method": "m",
        "measured": False, "uncertainty": None,
    }  # fmt: skip
    report = {
        "status": "completed", "reason": None, "prediction": None, "training": {"tokens": 5},
        "measures": {"energy": energy, "carbon": {"operational_g": 1.0}},
    }  # fmt: skip
    (store.output(made.id) / "green_report.json").write_text(json.dumps(report))
    runner = JobRunner(store, tmp_path / "adapters", lambda pid, is_training: None)
    runner._conclude(made, 0)  # there are no weights to install
    ended = store.find(made.id)
    assert ended is not None
    assert (ended.status, ended.pid) == ("failed", None)
    assert "cannot be kept" in (ended.error or "")


def test_a_broken_job_file_hides_no_other_job(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    first, second = job(), job(created_at=6)
    store.add(first)
    store.add(second)
    (store.folder(first.id) / "job.json").write_text("{half")
    assert store.all() == [second]
    assert store.find("../../etc/passwd") is None
