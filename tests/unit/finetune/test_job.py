"""A run as a job: an error that ends it is in its outcome, with the option it is about."""

from pathlib import Path

import pytest

from finetune import job
from finetune.bill.outcome import RunError, RunOutcome
from finetune.data.examples import DataError
from finetune.files import OUTCOME
from finetune.recipe import Recipe
from greenllm.core import GreenllmError


def started(tmp_path: Path, recipe: str = 'data = "notes.jsonl"') -> int:
    (tmp_path / "recipe.toml").write_text(recipe)
    words = ["--config", str(tmp_path / "recipe.toml"), "--output", str(tmp_path / "out")]
    return job.main(["finetune", *words, "--resume"])


def outcome(tmp_path: Path) -> RunOutcome | None:
    return RunOutcome.read(tmp_path / "out" / OUTCOME)


def ending(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[Recipe]:
    """Runs end with this error at once; what was to be run."""
    asked: list[Recipe] = []

    def run(recipe: Recipe) -> None:
        asked.append(recipe)
        if error is not None:
            raise error

    monkeypatch.setattr(job, "finetune", run)
    return asked


def test_a_job_runs_its_recipe_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ending(monkeypatch, None)
    assert started(tmp_path, "rank = 4") == 0
    (recipe,) = asked
    assert (recipe.rank, recipe.output, recipe.resume) == (4, tmp_path / "out", True)
    assert outcome(tmp_path) is None, "a run itself leaves it, with its report"


def test_a_recipe_that_no_run_takes_blames_its_option(tmp_path: Path) -> None:
    assert started(tmp_path, "rank = 0") == 2
    found = outcome(tmp_path)
    assert found is not None
    assert found.error is not None
    assert (found.status, found.error.option) == ("failed", "rank")
    assert not found.is_done


@pytest.mark.parametrize(
    ("error", "option"), [(DataError("line 2", "data"), "data"), (GreenllmError("why"), None)]
)
def test_what_ends_a_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, option: str | None
) -> None:
    ending(monkeypatch, error)
    assert started(tmp_path) == 2
    assert outcome(tmp_path) == RunOutcome("failed", error=RunError(str(error), option))


def test_a_run_that_has_left_its_outcome_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = RunOutcome("failed", error=RunError("the loss is nan"), tokens=7)
    (tmp_path / "out").mkdir()
    left.write(tmp_path / "out" / OUTCOME)
    ending(monkeypatch, GreenllmError("the loss is nan"))
    assert started(tmp_path) == 2
    assert outcome(tmp_path) == left


def test_a_crash_is_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError):
        started(tmp_path)
    assert outcome(tmp_path) is None
