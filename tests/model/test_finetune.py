"""Fine-tuning a tiny model for real: every method, resuming, stopping, and what the report says."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.data.household import household_rows
from finetune.files import JOURNAL, complete
from finetune.recipe import Recipe
from finetune.train.output import opened_folder
from finetune.train.watch import Progress
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from tests.model.finetuning import STEPS, equal, save_tiny, train, weights

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to train."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "qlora", "full"])
def test_every_method_learns_and_leaves_a_bill(tiny: Path, tmp_path: Path, method: str) -> None:
    report = train(tiny, tmp_path / "out", method=method, answers=4)
    change = report["quality"]["validation_loss_change"]
    assert change["high"] < -0.1, "the validation loss fell, whichever examples there are"
    energy = report["measures"]["energy"]
    phases = energy["by_phase"]
    assert {"data", "loading", "training", "evaluation", "saving"} <= phases.keys()
    billed = sum(
        found["total_j"] for name, found in phases.items() if name not in ("compare", "waiting")
    )
    assert energy["total_j"] == pytest.approx(billed)
    assert energy["total_j"] > phases["training"]["total_j"] > 0
    assert report["status"] == "completed"
    assert report["training"]["steps"] == STEPS
    assert report["quality"]["exact_match"]["after"]["examples"] == 4
    size = report["measures"]["model"]
    assert (size["trained"] < size["parameters"] / 2) == (method != "full")
    assert size["output_bytes"] > 0


def test_a_crashed_run_goes_on_to_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dropout": 0.2, "save_every": 6}
    whole = train(tiny, tmp_path / "whole", **options)

    def crash(now: Progress) -> None:
        if now.seen.steps == 15:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        train(tiny, tmp_path / "broken", show=crash, **options)
    assert not (tmp_path / "broken" / "adapter_model.safetensors").exists()
    resumed = train(tiny, tmp_path / "broken", resume=True, **options)
    assert equal(tmp_path / "whole", tmp_path / "broken")
    assert resumed["training"]["losses"] == whole["training"]["losses"]
    assert resumed["training"]["tokens"] == whole["training"]["tokens"]
    assert resumed["measures"]["energy"]["by_phase"]["lost"]["total_j"] > 0


@pytest.mark.parametrize("looks", [{}, {"eval_every": 6}])
def test_a_run_that_died_after_its_last_step_trains_no_further(
    tiny: Path, tmp_path: Path, looks: dict[str, Any]
) -> None:
    options: dict[str, Any] = looks or {"save_every": 6}
    whole = train(tiny, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for name in ("green_report.json", "adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "broken" / name).unlink()
    resumed = train(tiny, tmp_path / "broken", resume=True, **options)
    assert equal(tmp_path / "whole", tmp_path / "broken")
    assert resumed["training"]["steps"] == whole["training"]["steps"] == STEPS
    assert resumed["training"]["losses"] == whole["training"]["losses"]


def test_a_half_written_checkpoint_is_not_resumed_from(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def crash(now: Progress) -> None:
        if now.seen.steps == 15:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        train(tiny, output, show=crash, save_every=6)
    shutil.copytree(output / "checkpoints/checkpoint-6", output / "checkpoints/checkpoint-14")
    (output / "checkpoints/checkpoint-14/greenllm.json").unlink()
    (output / "checkpoints/checkpoint-14/optimizer.pt").write_bytes(b"half")
    (output / f"{JOURNAL}.part").write_text('{"seen": ')
    train(tiny, output, resume=True, save_every=6)
    train(tiny, tmp_path / "whole", save_every=6)
    assert equal(tmp_path / "whole", output)


def test_an_interrupted_run_says_so_and_can_go_on(tiny: Path, tmp_path: Path) -> None:
    def interrupt(now: Progress) -> None:
        if now.seen.steps == 10:
            # Called, not sent: the signal itself reaches a process in the tests of the service.
            handler = signal.getsignal(signal.SIGINT)
            assert callable(handler)
            handler(signal.SIGINT, None)

    report = train(tiny, tmp_path / "out", show=interrupt)
    assert (report["status"], report["reason"]) == ("stopped", "interrupt")
    assert report["training"]["steps"] <= 11
    assert complete(tmp_path / "out" / "checkpoints")
    resumed = train(tiny, tmp_path / "out", resume=True)
    train(tiny, tmp_path / "whole")
    assert resumed["status"] == "completed"
    assert equal(tmp_path / "whole", tmp_path / "out")


def test_a_rate_that_ruins_the_weights_ends_with_the_last_good_ones(
    tiny: Path, tmp_path: Path
) -> None:
    report = train(tiny, tmp_path / "out", learning_rate=1e30, warmup_share=0.0)
    assert report["status"] == "failed"
    assert "--learning-rate" in report["reason"]
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "out").values())


def test_early_stopping_keeps_the_best(tiny: Path, tmp_path: Path) -> None:
    report = train(
        tiny, tmp_path / "out", steps=60, eval_every=5, patience=2, learning_rate=1.0,
        schedule="constant", validation_share=0.05,
    )  # fmt: skip
    scores = dict(report["training"]["validation_losses"])
    assert report["training"]["steps"] < 60
    kept = report["quality"]["validation_loss"]["after"]["value"]
    assert kept == pytest.approx(min(scores.values()), rel=0.02)


def test_packed_examples_do_not_see_each_other(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, household_rows()[:16])))
    options: dict[str, Any] = {
        "data": str(data), "steps": 1, "learning_rate": 1e-9, "batch_size": 16,
        "validation_share": 0.0,
    }  # fmt: skip
    apart = train(tiny, tmp_path / "apart", dtype="float32", **options)["training"]
    packed = train(tiny, tmp_path / "packed", dtype="float32", packing=True, **options)["training"]
    assert packed["tokens"] == apart["tokens"]
    assert packed["padding_tokens"] < apart["padding_tokens"]
    assert packed["losses"][0][1] == pytest.approx(apart["losses"][0][1], rel=1e-5)


def test_targets_the_model_does_not_have_are_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--targets wq: .* has no such"):
        train(tiny, tmp_path / "out", targets=("q_proj", "wq"))


def test_a_folder_with_something_in_it_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.txt already"):
        train(tiny, tmp_path)
    with pytest.raises(ConfigError, match=r"notes\.txt, which no run has written"):
        train(tiny, tmp_path, resume=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "options", [{"data": "none.jsonl"}, {"model": "./none"}, {"targets": ("q_proj", "wq")}]
)
def test_a_run_that_cannot_begin_leaves_what_was_there(
    tiny: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(GreenllmError):
        train(tiny, tmp_path / "new" / "out", **options)
    assert list(tmp_path.iterdir()) == []
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(GreenllmError):
        train(tiny, mine, **options)
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize(
    ("report", "advice"),
    [
        (
            None,
            r"already: --resume goes on with an unfinished run, `greenllm adapters remove home ",
        ),
        ('{"status": "completed"}', r"already: `greenllm adapters remove home --data-dir .*` del"),
    ],
)
def test_a_name_in_use_is_refused_with_what_frees_it(
    tiny: Path, tmp_path: Path, report: str | None, advice: str
) -> None:
    recipe = Recipe(model=str(tiny), data="example", name="home", data_dir=tmp_path)
    recipe.folder.mkdir(parents=True)
    (recipe.folder / "README.md").touch()
    if report is not None:
        (recipe.folder / "green_report.json").write_text(report)
    with pytest.raises(ConfigError, match=advice) as refused, opened_folder(recipe):
        pytest.fail("it was opened")
    assert str(refused.value).startswith(f"--name home: {recipe.folder} holds README.md already: ")
    assert "--output" not in str(refused.value)
    assert (recipe.folder / "README.md").exists()


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(
    tiny: Path, tmp_path: Path
) -> None:
    def crash(now: Progress) -> None:
        if now.seen.steps == 3:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        train(tiny, tmp_path / "out", show=crash, save_every=6)
    report = train(tiny, tmp_path / "out", resume=True, save_every=6)
    train(tiny, tmp_path / "whole", save_every=6)
    assert equal(tmp_path / "whole", tmp_path / "out")
    assert report["measures"]["energy"]["by_phase"]["lost"]["total_j"] > 0


def test_a_complete_run_is_not_resumed(tiny: Path, tmp_path: Path) -> None:
    train(tiny, tmp_path / "out", steps=4)
    with pytest.raises(ConfigError, match="is complete"):
        train(tiny, tmp_path / "out", steps=4, resume=True)


def test_a_full_disk_leaves_the_earlier_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"

    def fill(now: Progress) -> None:
        if now.seen.steps == 8:
            monkeypatch.setattr(torch, "save", _no_space)

    with pytest.raises(GreenllmError, match=r"checkpoint-12.*No space left.*--resume"):
        train(tiny, output, show=fill, save_every=6)
    assert [path.name for path in complete(output / "checkpoints")] == ["checkpoint-6"]
    assert not (output / "checkpoints" / "checkpoint-12").exists()
    assert (output / JOURNAL).exists()
    monkeypatch.undo()
    train(tiny, output, resume=True, save_every=6)
    train(tiny, tmp_path / "whole", save_every=6)
    assert equal(tmp_path / "whole", output)


def _no_space(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_exits_learn_to_agree(tiny: Path, tmp_path: Path, method: str) -> None:
    options: dict[str, Any] = {"method": method, "steps": 60, "rank": 16, "exits": (1,)}
    options |= {"learning_rate": 1e-2, "objective": "layerskip"}
    unasked = train(tiny, tmp_path / "unasked", exit_weight=1e-9, **options)
    report = train(tiny, tmp_path / "out", exit_weight=1.0, **options)
    without, agreed = (r["quality"]["exits"]["1"]["after"] for r in (unasked, report))
    assert agreed["low"] > without["high"]
    assert report["quality"]["validation_loss_change"]["high"] < -0.5
    if method == "full":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["greenllm_exit_layers"] == [1]


def test_an_exit_that_is_not_inside_the_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--exits 2 must be in \[1, 1\]"):
        train(tiny, tmp_path / "out", objective="layerskip", exits=(2,))


def preferences(tmp_path: Path) -> Path:
    """Answers with a word more are the better ones, which no model finds likelier by itself."""
    pairs = [
        {"prompt": row["prompt"], "chosen": f"Sir, {row['completion']}",
         "rejected": row["completion"]}
        for row in household_rows()
    ]  # fmt: skip
    path = tmp_path / "preferences.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs)))
    return path


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_the_better_answer_is_preferred_after_dpo(tiny: Path, tmp_path: Path, method: str) -> None:
    data = str(preferences(tmp_path))
    options: dict[str, Any] = {"objective": "dpo", "data": data, "method": method, "steps": 40}
    report = train(tiny, tmp_path / "out", learning_rate=1e-2, **options)
    preferred = report["quality"]["preferred"]
    assert preferred["after"]["low"] > preferred["before"]["high"]
    losses = [loss for _, loss in report["training"]["losses"]]
    # Before the first step the model is its reference: both rewards are nothing.
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)
    assert losses[-1] < 0.6
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert "ref" not in " ".join(load_file(file))


def test_dpo_goes_on_to_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"objective": "dpo", "data": str(preferences(tmp_path))}
    options |= {"save_every": 6, "steps": 14}
    whole = train(tiny, tmp_path / "whole", **options)

    def crash(now: Progress) -> None:
        if now.seen.steps == 9:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        train(tiny, tmp_path / "broken", show=crash, **options)
    resumed = train(tiny, tmp_path / "broken", resume=True, **options)
    assert equal(tmp_path / "whole", tmp_path / "broken")
    assert resumed["training"]["losses"] == whole["training"]["losses"]


def test_a_teacher_is_learnt_from_and_on_the_bill(tiny: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    train(tiny, teacher, method="full", steps=60, learning_rate=3e-3)
    options: dict[str, Any] = {"method": "full", "learning_rate": 3e-3, "dtype": "float32"}
    options |= {"teacher": str(teacher), "objective": "distill", "teacher_weight": 1.0}
    report = train(tiny, tmp_path / "out", steps=60, **options)
    assert report["quality"]["validation_loss_change"]["high"] < -0.5
    energy = report["measures"]["energy"]
    asked, learnt = (energy["by_phase"][name]["total_j"] for name in ("teacher", "training"))
    assert 0 < asked < learnt, "forwards only, against forwards and backwards"
    assert energy["training_j"] == pytest.approx(asked + learnt)
    size = report["measures"]["model"]
    assert size["teacher"] == size["parameters"]
    assert (
        report["measures"]["flops"]["value"]
        == 8 * size["parameters"] * (report["training"]["tokens"])
    )
    # The teacher itself has nothing left to learn from its own words.
    again = train(teacher, tmp_path / "again", steps=1, **options)
    assert again["training"]["losses"][0][1] == pytest.approx(0.0, abs=1e-5)


def test_a_teacher_with_another_vocabulary_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[500:502]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="has another vocabulary than"):
        train(tiny, tmp_path / "out", objective="distill", teacher=str(other))


@pytest.mark.parametrize("objective", ["sft", "layerskip", "distill"])
def test_passes_of_a_step_are_one_batch(tiny: Path, tmp_path: Path, objective: str) -> None:
    options: dict[str, Any] = {"objective": objective, "steps": 2, "dtype": "float32"}
    options |= {"exits": (1,)} if objective == "layerskip" else {}
    options |= {"teacher": "bundled"} if objective == "distill" else {}
    at_once = train(tiny, tmp_path / "one", batch_size=8, **options)["training"]
    in_two = train(tiny, tmp_path / "two", batch_size=4, accumulation=2, **options)["training"]
    assert at_once["tokens"] == in_two["tokens"]
    assert at_once["losses"][0][1] == pytest.approx(in_two["losses"][0][1], rel=1e-4)
