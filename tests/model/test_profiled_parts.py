"""Profiles without a model: formulas, the middle of rounds, joules shared out, and the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from evals.commands.profile import profile as run
from evals.profiling.config import ProfileConfig
from evals.profiling.energy import Patience, StepEnergy, measure_energy
from evals.profiling.profile import Counts, Kind, Profile, Row, Subject, by_kind, rows_of
from evals.profiling.report import as_dict, draw, markdown, shares
from evals.profiling.timing import middle
from greenllm.cli.app import app
from greenllm.config import ConfigError, flag, load
from greenllm.energy.meters.protocol import Meter, NullMeter, Reading, ReplayMeter

PARTS: list[tuple[Kind, int | None]] = [
    ("embedding", None),
    ("attention", 0),
    ("MLP", 0),
    ("attention", 1),
    ("MLP", 1),
    ("head", None),
]
COUNTS = [
    Counts(weight_bytes=100),
    Counts(flops=1_000_000, masked_flops=250_000, weight_bytes=2_000_000, kv_bytes=500_000),
    Counts(flops=3_000_000, weight_bytes=6_000_000, activation_bytes=400),
    Counts(flops=2_000_000, weight_bytes=2_000_000, kv_bytes=500_000),
    Counts(flops=3_000_000, weight_bytes=6_000_000, activation_bytes=400),
    Counts(flops=1_000_000, weight_bytes=2_000_000),
]
PARTS_S = [0.001, 0.002, 0.003, 0.004, 0.005, 0.003]
ENERGY = StepEnergy("measured:rapl", True, 0.05, 20, 0.4, 0.1, 0.2)
UNKNOWN = StepEnergy("unknown", False, 1.0, reason="no meter works here")
NO_WAIT = Patience(rest_s=0.0, least_s=0.0)


def made(energy: StepEnergy = ENERGY, **options: Any) -> Profile:
    subject = Subject("made-up", 20_000_000, "none", "float32", "cpu", 2)
    rows = rows_of(PARTS, COUNTS, [*PARTS_S, 0.002], energy.active_j)
    return Profile(subject, ProfileConfig(**options), rows, 0.016, energy)


@pytest.mark.parametrize("name", ["batch", "prompt_tokens", "rounds", "threads"])
def test_options_must_be_above_0(name: str) -> None:
    message = rf"^{flag(name)} must be greater than 0 \(got 0\)$"
    with pytest.raises(ConfigError, match=message):
        ProfileConfig(**{name: 0})  # type: ignore[arg-type]


def test_unknown_options_and_values_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "profile.toml"
    file.write_text("layers = 3\n")
    with pytest.raises(ConfigError, match="unknown option 'layers'"):
        load(ProfileConfig, flags={}, file=file)
    with pytest.raises(ConfigError, match="--quantize must be one of none, int8, nf4"):
        load(ProfileConfig, flags={"quantize": "int4"})
    assert CliRunner().invoke(app, ["profile", "--layers", "3"]).exit_code == 2


@pytest.mark.parametrize(("phase", "context"), [("decode", 65), ("prefill", 64)])
def test_phases_say_their_context(phase: Any, context: int) -> None:
    assert ProfileConfig(phase=phase).context == context


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{}")
    with pytest.raises(ConfigError, match="is there already; name another folder"):
        run(ProfileConfig(output=tmp_path))


def test_meters_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match="--meter barometer: no meter is called"):
        run(ProfileConfig(meter="barometer"))


def test_intensity_is_flops_by_all_bytes() -> None:
    counts = Counts(flops=60, weight_bytes=10, kv_bytes=15, activation_bytes=5)
    assert counts.intensity == 2.0
    assert (counts + counts).intensity == 2.0
    assert Counts(flops=60).intensity is None


def test_the_middle_half_of_the_rounds_counts() -> None:
    rounds = [(step_s, step_s / 2) for step_s in (9.0, 2.0, 1.0, 900.0, 4.0, 3.0, 5.0, 6.0)]
    assert middle(rounds) == [4.5, 2.25]  # of 3, 4, 5 and 6
    assert middle([(7.0, 3.0)]) == [7.0, 3.0]
    assert middle([(7.0,), (9.0,)]) == [8.0]


@given(st.lists(st.floats(1e-6, 10.0), min_size=3, max_size=9), st.floats(0.0, 1e3))
def test_joules_of_parts_are_those_of_the_step(seconds: list[float], active_j: float) -> None:
    parts: list[tuple[Kind, int | None]] = [("MLP", n) for n in range(len(seconds) - 1)]
    rows = rows_of(parts, [Counts()] * len(parts), seconds, active_j)
    assert sum(row.active_j or 0.0 for row in rows) == pytest.approx(active_j)
    for row in rows:
        assert (row.active_j or 0.0) * sum(seconds) == pytest.approx(active_j * row.time_s)


def test_unknown_joules_stay_unknown() -> None:
    profile = made(UNKNOWN)
    assert {row.active_j for row in profile.rows} == {None}
    assert profile.total.active_j is None
    assert "Joules: unknown (no meter works here)." in markdown(profile)
    assert [row["active_j"] for row in as_dict(profile)["parts"]] == [None] * 7
    assert list(shares(profile.rows)) == ["FLOPs", "bytes", "time"]


def test_one_unknown_makes_a_sum_unknown() -> None:
    known = Row("MLP", 0, Counts(), 1.0, 2.0)
    assert (known + replace(known, layer=1)).active_j == 4.0
    assert (known + replace(known, active_j=None)).active_j is None


def test_kinds_are_sums_over_layers() -> None:
    rows = by_kind(made().rows)
    assert [(row.kind, row.count) for row in rows] == [
        ("embedding", 1), ("attention", 2), ("MLP", 2), ("head", 1), ("rest", 1)
    ]  # fmt: skip
    attention = rows[1]
    assert (attention.layer, attention.counts.flops) == (None, 3_000_000)
    assert attention.time_s == pytest.approx(0.006)
    assert attention.active_j == pytest.approx(0.4 * 0.006 / 0.020)


def test_totals_are_sums() -> None:
    profile = made()
    assert profile.total.counts.flops == 10_000_000
    assert profile.total.time_s == pytest.approx(0.020)
    assert profile.total.active_j == pytest.approx(0.4)
    assert profile.overhead == pytest.approx(0.25)


def readings(*joules: float, own_s: Sequence[float] = ()) -> list[Reading]:
    """One a second; of the CPU time of the machine, a second each, `own_s` is the own."""
    used = [sum(own_s[:number]) for number in range(len(joules))]
    times = [(used[n], float(n)) if own_s else (None, None) for n in range(len(joules))]
    return [
        Reading(float(n), {"cpu": value}, *times[n]) for n, value in enumerate(joules)
    ]  # fmt: skip


def counted(meter: Meter, rounds: int = 4, patience: Patience = NO_WAIT) -> tuple[StepEnergy, int]:
    runs: list[int] = []
    found = measure_energy(meter, lambda: runs.append(1), rounds, patience)
    return found, len(runs)


def test_joules_are_taken_apart_and_divided_by_steps() -> None:
    # 20 J in a second, 8 of them idle, half of the rest others'.
    meter = ReplayMeter(readings(0, 0, 20, own_s=[0.5] * 3), idle_w={"cpu": 8.0})
    found, runs = counted(meter)
    assert (found.steps, runs) == (4, 4)
    assert found.active_j == pytest.approx(6 / 4)
    assert found.idle_j == pytest.approx(8 / 4)
    assert found.foreign_j == pytest.approx(6 / 4)


def test_idle_power_is_learnt_where_the_meter_does_not_know_it() -> None:
    waits: list[float] = []
    patience = Patience(rest_s=1.5, least_s=0.0, wait=waits.append)
    found, _ = counted(ReplayMeter(readings(0, 0, 5, 5, 17)), patience=patience)
    assert waits == [1.5]
    assert (found.idle_j, found.active_j) == pytest.approx((5 / 4, 7 / 4))


def test_steps_last_as_long_as_the_meter_needs() -> None:
    now_s = iter(float(number) for number in range(1000))
    patience = Patience(least_s=0.0, clock=lambda: next(now_s))
    meter = ReplayMeter(readings(0, 0, 20), idle_w={}, period_s=1.0)
    found, runs = counted(meter, rounds=3, patience=patience)
    # Nobody looks at the clock before there are enough rounds; then 20 periods must be over.
    assert found.steps == runs == 3 + 19
    assert found.active_j == pytest.approx(20 / 22)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: NullMeter(lambda: 0.0), "no meter works here"),
        (lambda: ReplayMeter([*readings(0, 0), None], idle_w={}), "recorded sensor failure"),
        (
            lambda: ReplayMeter([*readings(0, 0), Reading(9, lost={"gpu": "gone"})], idle_w={}),
            "gpu: gone",
        ),
    ],
)
def test_without_readings_joules_are_none(make: Callable[[], Meter], reason: str) -> None:
    found, _ = counted(make())
    assert (found.active_j, found.idle_j, found.foreign_j) == (None, None, None)
    assert reason in str(found.reason)


def table(text: str) -> dict[str, list[str]]:
    """Cells of the rows of a page by their first."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in rows[2:]}


def test_the_page_has_means_over_layers() -> None:
    rows = table(markdown(made()))
    assert list(rows) == [
        "embedding", "attention, mean of a layer", "MLP, mean of a layer", "head", "rest", "step"
    ]  # fmt: skip
    assert rows["attention, mean of a layer"] == [
        "2", "1.5", "30.0%", "2.5", "26.3%", "0.6", "3", "30.0%", "60"
    ]  # fmt: skip
    assert rows["rest"] == ["1", "0", "0.0%", "0", "0.0%", "-", "2", "10.0%", "40"]
    assert rows["step"][:4] == ["7", "10", "100.0%", "19"]
    assert rows["step"][-3:] == ["20", "100.0%", "400"]


def test_the_page_has_every_layer_when_asked() -> None:
    rows = table(markdown(made(each_layer=True)))
    assert list(rows)[1:5] == [
        "layer 0: attention", "layer 0: MLP", "layer 1: attention", "layer 1: MLP"
    ]  # fmt: skip
    assert rows["layer 1: attention"][1] == "2"


def test_the_page_says_what_is_counted() -> None:
    text = markdown(made(phase="prefill"))
    assert "# made-up: one prefill" in text
    assert "10,000,000 in matrix products, 2.5% of them on masked keys" in text
    assert "by PyTorch's counter. Bytes are computed." in text
    assert "16.000 ms, and 20.000 ms (+25.0%)" in text
    assert "400.000 mJ active, beside 100.000 idle and 200.000 of other processes" in text


def test_json_has_every_part() -> None:
    found = json.loads(json.dumps(as_dict(made(output=Path("here")))))
    places = [(part["kind"], part["layer"]) for part in found["parts"]]
    assert places == [*PARTS, ("rest", None)]
    assert sum(part["flops"] for part in found["parts"]) == found["total"]["flops"]
    assert found["options"]["output"] == "here"


def test_shares_are_of_the_whole() -> None:
    rows = by_kind(made().rows)
    found = shares(rows)
    assert list(found) == ["FLOPs", "bytes", "time", "joules (by time)"]
    for values in found.values():
        assert sum(values) == pytest.approx(1)
    assert found["time"] == pytest.approx(found["joules (by time)"])
    assert found["FLOPs"] == pytest.approx([0, 0.3, 0.6, 0.1, 0])


def test_the_picture_has_a_bar_for_what_is_known(tmp_path: Path) -> None:
    known, unknown = tmp_path / "known.svg", tmp_path / "unknown.svg"
    draw(made(), known)
    draw(made(UNKNOWN), unknown)
    assert "<!-- joules (by time) -->" in known.read_text()
    assert "<!-- joules" not in unknown.read_text()
    for kind in ("embedding", "attention", "MLP", "head", "rest"):
        assert f"<!-- {kind} -->" in known.read_text()
