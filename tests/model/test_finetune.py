"""Fine-tuning a tiny model for real: every method, resuming, stopping, and what the report says."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune import run as finetune_run
from finetune.checkpoints import complete
from finetune.encoding import Encoded
from finetune.examples import Example
from finetune.household import household_rows
from finetune.output import JOURNAL
from finetune.phases import PhaseAccount
from finetune.plan import sample
from finetune.recipe import Recipe
from finetune.report import Grams
from finetune.text import markdown
from finetune.watch import Progress
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.energy.grid import IntensityTable
from greenllm.energy.ladder import modelled_meter
from greenllm.energy.meter import Meter, Reading, ReplayMeter
from greenllm.model.options import BUNDLED_PATH

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 140 thousand parameters with the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        tie_word_embeddings=True, eos_token_id=2, pad_token_id=3, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_PATH / name, folder / name)
    return folder


def train(
    tiny: Path,
    output: Path,
    *,
    meter: Meter | None = None,
    show: Callable[[Progress], None] = lambda progress: None,
    **options: Any,
) -> dict[str, Any]:
    """A run on the example data; the report as it was written."""
    given = {"steps": STEPS, "batch_size": 4, "answers": 0, "threads": 1, "device": "cpu",
             "data": "example"}  # fmt: skip
    recipe = Recipe(model=str(tiny), output=output, **{**given, **options})
    grams = Grams(IntensityTable.load().lookup("WORLD"), 1.0, None)
    account = PhaseAccount(meter or modelled_meter())
    found = finetune_run.run(recipe, account, grams, show, lambda text: None)
    assert found is not None
    written: dict[str, Any] = json.loads((output / "green_report.json").read_text())
    assert written == json.loads(json.dumps(found))
    return written


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    found: dict[str, torch.Tensor] = load_file(path)
    return found


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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


def test_a_budget_stops_the_run_before_it_is_spent(tiny: Path, tmp_path: Path) -> None:
    whole = train(tiny, tmp_path / "whole", steps=60)["measures"]["energy"]
    spent_j = whole["total_j"] - whole["by_phase"]["training"]["total_j"] / 2
    report = train(tiny, tmp_path / "out", steps=60, budget_wh=spent_j / 3600)
    assert (report["status"], report["reason"]) == ("stopped", "budget")
    assert 0 < report["training"]["steps"] < 60
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


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


def test_the_same_tokens_in_full_stand_beside_the_bill(tiny: Path, tmp_path: Path) -> None:
    report = train(tiny, tmp_path / "out", compare="full")
    comparator = report["comparator"]
    assert (comparator["kind"], comparator["steps"]) == ("measured", STEPS)
    assert comparator["tokens"] == report["training"]["tokens"]
    assert comparator["training_j_for_same_tokens"] > 0
    assert "compare" in report["measures"]["energy"]["by_phase"]
    sample = train(tiny, tmp_path / "sample", compare="sample", steps=40)["comparator"]
    assert sample["kind"] == "scaled from 20 steps"
    ratio = sample["training_j_for_same_tokens"] / sample["training"]["total_j"]
    assert 1.5 < ratio < 2.5


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


def test_a_sensor_that_fails_leaves_unknown_joules_and_a_model(tiny: Path, tmp_path: Path) -> None:
    readings = [Reading(i, {"cpu": 5.0 * i}) for i in range(8)]
    report = train(tiny, tmp_path / "out", meter=ReplayMeter([*readings, None]))
    energy = report["measures"]["energy"]
    assert energy["total_j"] is None
    assert "failure" in energy["error"]
    assert report["measures"]["carbon"]["total_g"] is None
    assert all(found is None for found in energy["by_phase"].values())
    assert report["status"] == "completed"


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


def test_a_sweep_counts_every_trial_and_trains_with_the_best(tiny: Path, tmp_path: Path) -> None:
    report = train(tiny, tmp_path / "out", sweep="learning_rate=1e-7,1e-2;rank=2,4", steps=40)
    trials = report["trials"]
    assert [trial["steps"] for trial in trials] == [5, 5, 5, 5, 10, 10]
    assert report["recipe"]["learning_rate"] == 1e-2
    best = min(trials[-2:], key=lambda trial: trial["validation_loss"])
    assert report["recipe"]["rank"] == best["settings"]["rank"]
    phases = report["measures"]["energy"]["by_phase"]
    spent_j = sum(trial["joules"] for trial in trials)
    assert spent_j == pytest.approx(phases["trials"]["total_j"], rel=0.05)
    assert not (tmp_path / "out" / "trial").exists()
    assert "## Trials" in (markdown(report))


def test_a_plan_comes_near_the_bill_and_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=str(tiny), data="example", output=tmp_path / "out", steps=100,
                    batch_size=4, answers=0, threads=1, device="cpu")  # fmt: skip
    found = finetune_run.plan(recipe, PhaseAccount(modelled_meter()), lambda text: None)
    assert not (tmp_path / "out").exists()
    report = train(tiny, tmp_path / "out", steps=100)
    assert found.tokens == pytest.approx(report["training"]["tokens"], rel=0.1)
    assert found.joules is not None
    assert found.joules == pytest.approx(report["measures"]["energy"]["total_j"], rel=0.6)


def test_a_plan_takes_batches_of_all_lengths_and_does_not_mind_looks(
    tiny: Path, tmp_path: Path
) -> None:
    items = [
        Encoded(Example("x", "text", ()), (1,) * size, (True,) * size) for size in range(1, 89)
    ]
    batches = sample(items, 8)
    assert (batches[0][0].longest, batches[-1][-1].longest, len(batches)) == (1, 88, 6)
    recipe = Recipe(model=str(tiny), data="example", output=tmp_path / "out", steps=20, answers=0,
                    eval_every=5, patience=1, threads=1, device="cpu")  # fmt: skip
    found = finetune_run.plan(recipe, PhaseAccount(modelled_meter()), lambda text: None)
    assert found.joules is not None
    assert found.joules > 0


def test_the_greenest_window_is_waited_for_and_priced(tiny: Path, tmp_path: Path) -> None:
    now = time.time()
    series = tmp_path / "grid.csv"
    rows = [(now - 60, 500), (now + 6, 100), (now + 3600, 500)]
    series.write_text("time,g_per_kwh\n" + "\n".join(f"{at},{g}" for at, g in rows))
    report = train(
        tiny, tmp_path / "out", start="greenest", deadline="30m", intensity_series=series, steps=8
    )
    start, carbon = report["start"], report["measures"]["carbon"]
    assert start["g_per_kwh"] == pytest.approx(100)
    assert start["g_per_kwh_at_once"] > 100
    assert 0 < start["waited_s"] < 10
    assert carbon["intensity_g_per_kwh"] == pytest.approx(100)
    phases = report["measures"]["energy"]["by_phase"]
    assert phases["waiting"]["duration_s"] > 0
    billed = sum(found["total_j"] for name, found in phases.items()
                 if name not in ("waiting", "compare"))  # fmt: skip
    assert report["measures"]["energy"]["total_j"] == pytest.approx(billed)


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
