"""The bill of a fine-tune: what stops it, is compared, planned, waited for; what crashes leave."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from finetune import run as finetune_run
from finetune.bill.pages import markdown
from finetune.bill.phases import PhaseAccount
from finetune.data.encoding import Encoded
from finetune.data.examples import DataLine
from finetune.data.household import household_rows
from finetune.files import JOURNAL
from finetune.plan import trials
from finetune.plan.forecast import sample
from finetune.plan.waiting import wait_for_green
from finetune.recipe import Recipe
from finetune.train import compare
from greenllm.config import ConfigError
from greenllm.energy.meters.modelled import modelled_meter
from greenllm.energy.meters.protocol import Reading, ReplayMeter
from tests.model.finetuning import STEPS, crash_at, save_tiny, train

pytestmark = pytest.mark.filterwarnings("ignore")
AWAY_S = 600.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to train."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def plan(tiny: Path, output: Path, **options: Any) -> Any:
    given = {"batch_size": 4, "answers": 0, "threads": 1, "device": "cpu", "data": "example"}
    recipe = Recipe(model=str(tiny), output=output, **{**given, **options})
    return finetune_run.plan(recipe, PhaseAccount(modelled_meter()), lambda text: None)


def phases_of(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["measures"]["energy"]["by_phase"]
    return found


@pytest.fixture
def series(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Clean power ten minutes from now, which pass as soon as somebody waits for it."""
    slept_s = [0.0]
    wait = partial(wait_for_green, clock=lambda: time.time() + sum(slept_s), sleep=slept_s.append)
    monkeypatch.setattr(finetune_run, "wait_for_green", wait)
    now, path = time.time(), tmp_path / "grid.csv"
    rows = [(now - 60, 500), (now + AWAY_S, 100), (now + 3600, 500)]
    path.write_text("time,g_per_kwh\n" + "\n".join(f"{at},{g}" for at, g in rows))
    return path


def test_the_greenest_window_is_waited_for_and_priced(
    tiny: Path, series: Path, tmp_path: Path
) -> None:
    report = train(
        tiny, tmp_path / "out", start="greenest", deadline="30m", intensity_series=series, steps=8
    )
    start, carbon = report["start"], report["measures"]["carbon"]
    assert start["g_per_kwh"] == pytest.approx(100)
    assert start["g_per_kwh_at_once"] > 100
    assert 0 < start["waited_s"] < AWAY_S + 60
    phases = phases_of(report)
    total_j = report["measures"]["energy"]["total_j"]
    # Data, and loading with the forecast, were spent before the window, at 500.
    early_j = json.loads((tmp_path / "out" / "wait.json").read_text())["spent_j"]
    assert phases["data"]["total_j"] < early_j
    assert early_j < phases["data"]["total_j"] + phases["loading"]["total_j"]
    expected = 100 + 400 * early_j / total_j
    assert carbon["intensity_g_per_kwh"] == pytest.approx(expected, rel=0.02)
    assert phases["waiting"]["duration_s"] > 0
    billed = sum(found["total_j"] for name, found in phases.items()
                 if name not in ("waiting", "compare"))  # fmt: skip
    assert report["measures"]["energy"]["total_j"] == pytest.approx(billed)


class PassMeter:
    """A joule for each pass through the model, however busy the machine is."""

    method = "measured:passes"
    measured = True
    period_s = lag_s = 0.0
    uncertainty = 0.05
    idle_w: Mapping[str, float] | None = MappingProxyType({"cpu": 0.0})

    def __init__(self) -> None:
        self.passes = 0

    def note(self, module: torch.nn.Module, *_: object) -> None:
        self.passes += isinstance(module, torch.nn.Embedding)

    def read(self) -> Reading:
        return Reading(time.monotonic(), {"cpu": float(self.passes)})


@pytest.fixture
def passes() -> Iterator[PassMeter]:
    """A meter for what models compute in this test."""
    meter = PassMeter()
    hook = torch.nn.modules.module.register_module_forward_hook(meter.note)
    yield meter
    hook.remove()


def test_a_plan_comes_near_the_bill_and_writes_nothing(
    tiny: Path, tmp_path: Path, passes: PassMeter
) -> None:
    recipe = Recipe(model=str(tiny), data="example", output=tmp_path / "out", steps=100,
                    batch_size=4, answers=0, threads=1, device="cpu")  # fmt: skip
    found = finetune_run.plan(recipe, PhaseAccount(passes), lambda text: None)
    assert not (tmp_path / "out").exists()
    report = train(tiny, tmp_path / "out", meter=passes, steps=100)
    assert found.tokens == pytest.approx(report["training"]["tokens"], rel=0.1)
    assert found.joules is not None
    assert found.joules == pytest.approx(report["measures"]["energy"]["total_j"], rel=0.2)


def test_a_plan_takes_batches_of_all_lengths_and_does_not_mind_looks(
    tiny: Path, tmp_path: Path
) -> None:
    items = [
        Encoded(DataLine("x", "text", ()), (1,) * size, (True,) * size) for size in range(1, 89)
    ]
    batches = sample(items, 8)
    assert (batches[0][0].longest, batches[-1][-1].longest, len(batches)) == (1, 88, 6)
    recipe = Recipe(model=str(tiny), data="example", output=tmp_path / "out", steps=20, answers=0,
                    eval_every=5, patience=1, threads=1, device="cpu")  # fmt: skip
    found = finetune_run.plan(recipe, PhaseAccount(modelled_meter()), lambda text: None)
    assert found.joules is not None
    assert found.joules > 0


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


def test_a_sensor_that_fails_leaves_unknown_joules_and_a_model(tiny: Path, tmp_path: Path) -> None:
    readings = [Reading(i, {"cpu": 5.0 * i}) for i in range(8)]
    report = train(tiny, tmp_path / "out", meter=ReplayMeter([*readings, None]))
    energy = report["measures"]["energy"]
    assert energy["total_j"] is None
    assert "failure" in energy["error"]
    assert report["measures"]["carbon"]["total_g"] is None
    assert all(found is None for found in energy["by_phase"].values())
    assert report["status"] == "completed"


def test_a_budget_stops_the_run_before_it_is_spent(tiny: Path, tmp_path: Path) -> None:
    whole = train(tiny, tmp_path / "whole", steps=60)["measures"]["energy"]
    spent_j = whole["total_j"] - whole["by_phase"]["training"]["total_j"] / 2
    report = train(tiny, tmp_path / "out", steps=60, budget_wh=spent_j / 3600)
    assert (report["status"], report["reason"]) == ("stopped", "budget")
    assert 0 < report["training"]["steps"] < 60
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


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


def test_an_epoch_of_packed_rows_sees_every_token_once(tiny: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"packing": True, "epochs": 1.0, "steps": None, "batch_size": 2}
    report = train(tiny, tmp_path / "out", **options)
    assert report["training"]["tokens"] == report["data"]["train_tokens"]
    found = plan(tiny, tmp_path / "plan", packing=True, epochs=1.0, batch_size=2)
    assert found.steps == report["training"]["steps"]
    assert found.tokens == pytest.approx(report["data"]["train_tokens"], rel=0.1)


def test_a_plan_counts_trials_and_looks(tiny: Path, tmp_path: Path) -> None:
    plan(tiny, tmp_path / "out", steps=400)  # the first in a process costs more
    alone = plan(tiny, tmp_path / "out", steps=400)
    swept = plan(tiny, tmp_path / "out", steps=400, sweep="rank=2,4,8,16")
    looked = plan(tiny, tmp_path / "out", steps=400, eval_every=1)
    # Trials are 4 x 50 and 2 x 100 steps, as many as the run; a look costs more than a step.
    for more in (swept, looked):
        assert more.joules > 1.3 * alone.joules
        assert more.tokens == alone.tokens


def test_looks_to_come_are_part_of_the_prediction(
    tiny: Path, tmp_path: Path, passes: PassMeter
) -> None:
    report = train(tiny, tmp_path / "out", meter=passes, steps=120, eval_every=2)
    assert phases_of(report)["evaluation"]["total_j"] > 0.3 * report["prediction"]["actual_j"]
    assert report["prediction"]["ratio"] == pytest.approx(1, abs=0.2)


def test_a_budget_without_a_meter_is_refused_or_stops_the_run(tiny: Path, tmp_path: Path) -> None:
    nothing = ReplayMeter([Reading(0, {"cpu": 0.0}), None])
    with pytest.raises(ConfigError, match="--budget-wh needs a meter"):
        train(tiny, tmp_path / "out", meter=nothing, budget_wh=1.0)
    readings: list[Reading | None] = [Reading(i, {"cpu": 1e-6 * i}) for i in range(40)]
    report = train(tiny, tmp_path / "late", meter=ReplayMeter([*readings, None]), budget_wh=1.0)
    assert report["status"] == "stopped"
    assert report["reason"].startswith("budget: the meter failed")
    assert report["training"]["steps"] < STEPS


def test_a_sweep_is_on_the_bill_of_the_run_that_goes_on(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options: dict[str, Any] = {"sweep": "rank=2,4", "save_every": 30}
    with pytest.raises(RuntimeError):
        train(tiny, output, show=crash_at(3), **options)
    kept = json.loads((output / JOURNAL).read_text())["energy"]
    report = train(tiny, output, resume=True, **options)
    spent = phases_of(report)["trials"]["total_j"]
    assert spent == pytest.approx(kept["trials"]["active_j"] + kept["trials"]["idle_j"])
    assert phases_of(report)["lost"]["total_j"] > 0


def test_a_sweep_that_died_on_its_way_is_not_forgotten(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    options: dict[str, Any] = {"sweep": "rank=2,4,8", "save_every": 30}
    tried = trials._try

    def die(subject: Any, account: Any, settings: Any, steps: int) -> Any:
        if steps > STEPS // 8:
            raise RuntimeError("crash in the second rung")
        return tried(subject, account, settings, steps)

    monkeypatch.setattr(trials, "_try", die)
    with pytest.raises(RuntimeError):
        train(tiny, output, **options)
    kept = json.loads((output / JOURNAL).read_text())["energy"]["trials"]
    monkeypatch.undo()
    report = train(tiny, output, resume=True, **options)
    counted = sum(trial["joules"] for trial in report["trials"])
    spent = phases_of(report)["trials"]["total_j"]
    assert spent == pytest.approx(counted + kept["active_j"] + kept["idle_j"], rel=0.05)


def test_what_a_run_spends_after_training_is_in_its_journal(tiny: Path, tmp_path: Path) -> None:
    report = train(tiny, tmp_path / "out")
    journal = json.loads((tmp_path / "out" / JOURNAL).read_text())["energy"]
    for phase in ("data", "loading", "training", "evaluation", "saving"):
        found = journal[phase]["active_j"] + journal[phase]["idle_j"]
        assert found == pytest.approx(phases_of(report)[phase]["total_j"], rel=0.02)


def test_a_run_that_goes_on_keeps_its_window(tiny: Path, series: Path, tmp_path: Path) -> None:
    began_s = time.time()
    options: dict[str, Any] = {"start": "greenest", "deadline": "30m", "save_every": 6}
    options["intensity_series"] = series
    with pytest.raises(RuntimeError):
        train(tiny, tmp_path / "out", show=crash_at(9), **options)
    started = json.loads((tmp_path / "out" / "wait.json").read_text())["started_s"]
    report = train(tiny, tmp_path / "out", resume=True, **options)
    assert report["start"]["waited_s"] > 0
    assert started > began_s + AWAY_S - 60
    assert 100 < report["measures"]["carbon"]["intensity_g_per_kwh"] < 500
    assert phases_of(report)["waiting"]["duration_s"] > 0


def test_a_series_of_the_past_is_refused(tiny: Path, tmp_path: Path) -> None:
    series = tmp_path / "grid.csv"
    series.write_text("time,g_per_kwh\n2020-01-01T00:00Z,500\n2020-01-01T01:00Z,100\n")
    with pytest.raises(ConfigError, match=r"ends in the past, at 2020-01-01T02:00"):
        train(tiny, tmp_path / "out", start="greenest", deadline="1h", intensity_series=series)


def test_a_comparison_that_fails_leaves_the_report(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        written = json.loads((tmp_path / "out" / "green_report.json").read_text())
        assert written["status"] == "completed"
        raise torch.OutOfMemoryError("no room for every weight")

    monkeypatch.setattr(compare, "measure", fail)
    report = train(tiny, tmp_path / "out", compare="full")
    assert report["comparator"] == {"kind": "failed", "reason": "no room for every weight"}
    assert "no room for every weight" in markdown(report)


def test_idle_power_that_is_billed_elsewhere_is_in_neither_side(tiny: Path, tmp_path: Path) -> None:
    report = train(tiny, tmp_path / "out", compare="full", bill_idle=False)
    assert report["comparator"]["training"]["idle_j"] == 0
    assert phases_of(report)["training"]["idle_j"] == 0


def test_answers_that_cannot_be_given_are_not_asked_for(tiny: Path, tmp_path: Path) -> None:
    rows = household_rows()[:12]
    data, validation = tmp_path / "data.jsonl", tmp_path / "validation.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    long = {**rows[1], "completion": "word " * 300}
    validation.write_text("\n".join(map(json.dumps, [rows[0], long])))
    report = train(
        tiny, tmp_path / "out", data=str(data), validation=validation, answers=2, steps=2,
        too_long="truncate", max_length=120,
    )  # fmt: skip
    assert report["data"]["validation"] == 2
    assert report["quality"]["exact_match"]["after"]["examples"] == 1
