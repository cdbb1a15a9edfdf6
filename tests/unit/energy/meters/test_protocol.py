"""Readings are cumulative; unknown is not zero; a recording plays back failures too."""

import json
from pathlib import Path

import pytest

from greenllm.energy.meters.protocol import (
    NullMeter,
    Reading,
    ReplayMeter,
    SensorError,
    load_replay,
)


def test_a_reading_adds_its_domains() -> None:
    assert Reading(0.0, {"cpu": 1.5, "gpu": 2.0, "dram": 0.25}).total_j == 3.75
    assert Reading(0.0).total_j == 0


def test_a_reading_knows_what_is_missing_since_another() -> None:
    before = Reading(0.0, {"cpu": 1.0, "gpu": 1.0})
    gap = frozenset({"gpu"})
    assert Reading(1.0, {"cpu": 2.0, "gpu": 2.0}).hole_since(before) is None
    assert Reading(1.0, {"cpu": 2.0, "gpu": 1.0}, gaps=gap).hole_since(before) is None
    assert Reading(1.0, {"cpu": 2.0, "gpu": 9.0}, gaps=gap).hole_since(before) is not None
    assert Reading(1.0, {"cpu": 2.0}, lost={"gpu": "gone"}).hole_since(before) == "gpu: gone"
    assert Reading(1.0, {"cpu": 2.0}).hole_since(before) is not None
    assert before.hole_since(Reading(0.0, {"cpu": 1.0})) is not None


def test_the_null_meter_has_no_domains_rather_than_zeros() -> None:
    meter = NullMeter(lambda: 7.0)
    assert meter.read() == Reading(7.0, {})
    assert (meter.method, meter.measured, meter.idle_w) == ("unknown", False, None)


def test_replay_plays_in_order_and_repeats_the_last() -> None:
    records = [Reading(0.0, {"cpu": 0.0}), Reading(1.0, {"cpu": 5.0})]
    meter = ReplayMeter(records, method="replay:x", measured=False, period_s=0.1, idle_w={"cpu": 1})
    assert [meter.read().total_j for _ in range(4)] == [0, 5, 5, 5]
    assert (meter.method, meter.measured, meter.period_s) == ("replay:x", False, 0.1)
    assert meter.idle_w == {"cpu": 1}


def test_replay_fails_where_the_recording_did() -> None:
    meter = ReplayMeter([Reading(0.0, {"cpu": 0.0}), None, Reading(2.0, {"cpu": 3.0})])
    meter.read()
    with pytest.raises(SensorError, match="recorded sensor failure"):
        meter.read()
    assert meter.read().total_j == 3


def test_an_empty_recording_is_a_failing_sensor() -> None:
    with pytest.raises(SensorError, match="no readings"):
        ReplayMeter([]).read()


def test_replay_with_a_clock_keeps_joules_and_takes_the_time() -> None:
    now = iter([100.0, 101.0])
    meter = ReplayMeter([Reading(0.0, {"cpu": 0.0}, 1.0, 2.0)], clock=lambda: next(now))
    assert meter.read() == Reading(100.0, {"cpu": 0.0}, 1.0, 2.0)
    assert meter.read().at_s == 101.0


def test_a_recording_is_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = {"at_s": 1, "joules": {"cpu": 2}, "own_cpu_s": 0.5, "machine_cpu_s": 0.75}
    path.write_text(f"{json.dumps(first)}\n\nnull\n{json.dumps({'at_s': 3.0})}\n")
    meter = load_replay(path)
    assert meter.read() == Reading(1.0, {"cpu": 2.0}, 0.5, 0.75)
    with pytest.raises(SensorError):
        meter.read()
    assert meter.read() == Reading(3.0, {})


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "5",
        "[1]",
        '{"joules": {}}',
        '{"at_s": "x"}',
        '{"at_s": 1, "joules": [1]}',
        '{"at_s": 1, "joules": {"cpu": "much"}}',
        '{"at_s": 1, "watts": 2}',
    ],
)
def test_a_line_that_is_no_reading_is_refused_with_its_file(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(SensorError, match=r"cannot use .*bad\.jsonl"):
        load_replay(path)


@pytest.mark.parametrize("joules", ["1.0", "NaN", "Infinity"])
def test_a_recording_that_no_meter_can_have_made_is_refused(tmp_path: Path, joules: str) -> None:
    path = tmp_path / "bad.jsonl"
    lines = ["2.0", "2.0", joules]
    path.write_text("".join(f'{{"at_s": 1, "joules": {{"cpu": {value}}}}}\n' for value in lines))
    with pytest.raises(SensorError, match="reading 3: joules of cpu fall"):
        load_replay(path)


def test_a_recording_may_have_gaps_and_lost_domains(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record = {"at_s": 1, "gaps": ["gpu"], "lost": {"gpu": "gone"}, "as_of_s": {"cpu": 0.5}}
    path.write_text(json.dumps(record))
    reading = load_replay(path).read()
    assert reading.gaps == {"gpu"}
    assert (reading.lost, reading.as_of_s) == ({"gpu": "gone"}, {"cpu": 0.5})


def test_a_missing_recording_is_a_sensor_error(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match=r"nowhere\.jsonl"):
        load_replay(tmp_path / "nowhere.jsonl")
