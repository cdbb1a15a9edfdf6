"""Readings are cumulative; unknown is not zero; a recording plays back failures too."""

import json
from pathlib import Path

import pytest

from greenllm.energy.meters.protocol import (
    CombinedMeter,
    NullMeter,
    Reading,
    ReplayMeter,
    SensorError,
    load_replay,
)


def test_a_reading_adds_its_domains() -> None:
    assert Reading(0.0, {"cpu": 1.5, "gpu": 2.0, "dram": 0.25}).total_j == 3.75
    assert Reading(0.0).total_j == 0


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


def test_a_missing_recording_is_a_sensor_error(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match=r"nowhere\.jsonl"):
        load_replay(tmp_path / "nowhere.jsonl")


def test_combined_meters_merge_domains_and_take_the_first_cpu_times() -> None:
    gpu = ReplayMeter([Reading(1.0, {"gpu": 5.0})], method="a", period_s=0.1, uncertainty=0.2)
    cpu = ReplayMeter(
        [Reading(1.5, {"cpu": 3.0, "dram": 1.0}, 0.5, 2.0)], method="b", measured=False
    )
    both = CombinedMeter([gpu, cpu])
    assert both.read() == Reading(1.5, {"gpu": 5.0, "cpu": 3.0, "dram": 1.0}, 0.5, 2.0)
    assert (both.method, both.measured) == ("a+b", False)
    assert (both.period_s, both.uncertainty) == (0.1, 0.2)


def test_combined_meters_of_one_domain_add() -> None:
    one, two = (ReplayMeter([Reading(0.0, {"gpu": j})]) for j in (2.0, 3.0))
    assert CombinedMeter([one, two]).read() == Reading(0.0, {"gpu": 5.0})


def test_combined_idle_power_is_known_only_when_all_know_theirs() -> None:
    known = ReplayMeter([], idle_w={"cpu": 2.0})
    also = ReplayMeter([], idle_w={"gpu": 30.0})
    assert CombinedMeter([known, also]).idle_w == {"cpu": 2.0, "gpu": 30.0}
    assert CombinedMeter([known, ReplayMeter([])]).idle_w is None


def test_one_failing_part_fails_the_whole_reading_and_nothing_is_lost() -> None:
    steady = ReplayMeter([Reading(float(i), {"gpu": float(i)}) for i in range(3)])
    failing = ReplayMeter([Reading(0.0, {"cpu": 0.0}), None, Reading(2.0, {"cpu": 4.0})])
    both = CombinedMeter([steady, failing])
    assert both.read().total_j == 0
    with pytest.raises(SensorError):
        both.read()
    assert both.read().joules == {"gpu": 2.0, "cpu": 4.0}
