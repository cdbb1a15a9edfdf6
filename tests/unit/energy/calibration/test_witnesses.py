"""Meters, CodeCarbon and Zeus side by side: joules, ratios, and whoever fails says why."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from greenllm.energy.calibration.witnesses import (
    CodeCarbonWitness,
    Counted,
    MeterWitness,
    Statement,
    Witness,
    ZeusWitness,
    hear,
    ratios,
)
from greenllm.energy.meters.protocol import Reading, ReplayMeter


class Tracker:
    """CodeCarbon's tracker, as far as it is used."""

    def __init__(self, **options: Any) -> None:
        assert options["output_methods"] == [], "nothing is written or sent"
        print("a banner")
        self.said: list[str] = []

    def start_task(self, name: str) -> None:
        self.said.append(f"start {name}")

    def stop_task(self, name: str) -> SimpleNamespace:
        self.said.append(f"stop {name}")
        return SimpleNamespace(
            cpu_energy=1e-5, gpu_energy=0.0, ram_energy=5e-6, duration=4.0, codecarbon_version="3.3"
        )

    def stop(self) -> None:
        assert self.said == ["start greenllm", "stop greenllm"]


class Monitor:
    """Zeus' monitor; on a machine with nothing to count there are no figures."""

    gpu_energy: dict[int, float] = {0: 30.0, 1: 10.0}  # noqa: RUF012
    cpu_energy: dict[int, float] | None = {0: 25.0}  # noqa: RUF012

    def begin_window(self, key: str, sync_execution: bool) -> None:
        assert not sync_execution, "torch need not be there"

    def end_window(self, key: str, sync_execution: bool) -> SimpleNamespace:
        return SimpleNamespace(
            time=2.0, gpu_energy=self.gpu_energy, cpu_energy=self.cpu_energy, dram_energy=None
        )


class Blind(Monitor):
    gpu_energy: dict[int, float] = {}  # noqa: RUF012
    cpu_energy = None


def _library(**classes: Any) -> Callable[[str], SimpleNamespace]:
    return lambda name: SimpleNamespace(**classes)


def _meter(name: str, *readings: Reading | None) -> MeterWitness:
    return MeterWitness(name, ReplayMeter(readings, method=f"measured:{name}"))


def test_each_tells_joules_and_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    worked: list[int] = []
    witnesses: list[Witness] = [
        CodeCarbonWitness(_library(OfflineEmissionsTracker=Tracker)),
        ZeusWitness(_library(ZeusMonitor=Monitor)),
        _meter("rapl", Reading(1.0, {"cpu": 5.0, "dram": 1.0}), Reading(3.0, {"cpu": 25.0})),
    ]
    carbon, zeus, rapl = hear(witnesses, lambda: worked.append(1))
    assert worked == [1]
    assert carbon.counted["cpu"].joules == pytest.approx(36.0)
    assert carbon.counted["cpu"].seconds == 4.0
    assert carbon.counted["dram"] == Counted(18.0, 4.0)
    assert zeus.counted == {"gpu": Counted(40.0, 2.0), "cpu": Counted(25.0, 2.0)}
    assert rapl == Statement("rapl", "measured:rapl", {"cpu": Counted(20.0, 2.0)})
    assert capsys.readouterr().out == ""


def test_a_counter_that_ticks_has_the_seconds_of_its_ticks() -> None:
    first = Reading(1.0, {"gpu": 0.0}, as_of_s={"gpu": 0.9})
    last = Reading(3.0, {"gpu": 10.0}, as_of_s={"gpu": 2.95})
    (told,) = hear([_meter("nvml", first, last)], lambda: None)
    assert told.counted["gpu"].seconds == pytest.approx(2.05)


def test_who_fails_says_why_and_the_others_go_on() -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    class Broken(Tracker):
        def start_task(self, name: str) -> None:
            raise AttributeError("no\n hardware")

    told = hear(
        [
            ZeusWitness(absent),
            CodeCarbonWitness(_library(OfflineEmissionsTracker=Broken)),
            _meter("lost", Reading(0.0, {"cpu": 0.0}), None),
            _meter("rapl", Reading(0.0, {"cpu": 0.0}), Reading(1.0, {"cpu": 9.0})),
        ],
        lambda: None,
    )
    assert [one.how for one in told] == [
        "not installed: No module named 'zeus.monitor'",
        "AttributeError: no hardware",
        "SensorError: replay: recorded sensor failure",
        "measured:rapl",
    ]
    assert [bool(one.counted) for one in told] == [False, False, False, True]


def test_nothing_counted_is_not_zero() -> None:
    (told,) = hear([ZeusWitness(_library(ZeusMonitor=Blind))], lambda: None)
    assert told.counted == {}
    assert "finds nothing here" in told.how


def test_ratios_are_of_mean_power_to_the_chosen_meter_of_a_domain() -> None:
    told = [
        Statement("other", "", {"cpu": Counted(60.0, 6.0), "dram": Counted(6.0, 6.0)}),
        Statement("rapl", "", {"cpu": Counted(40.0, 5.0)}),
        Statement("nvml", "", {"gpu": Counted(0.0, 5.0)}),
        Statement("nvml-power", "", {"gpu": Counted(1.0, 5.0)}),
    ]
    found = ratios(told, ["nvml", "rapl"])
    assert found == {("other", "cpu"): pytest.approx(1.25), ("rapl", "cpu"): 1.0}
