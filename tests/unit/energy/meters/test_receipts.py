"""What receipts say when counters lie, stand still or vanish under a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenllm.core import Batch, Chunk, Request, SamplingParams, Sequence
from greenllm.energy.account.account import Account
from greenllm.energy.account.bill import TokenCounts
from greenllm.energy.meters.combined import CombinedMeter
from greenllm.energy.meters.counters import CounterFile, FileCounterMeter
from greenllm.energy.meters.nvml import NvmlMeter
from greenllm.energy.meters.protocol import Meter
from greenllm.energy.receipt import Receipt
from greenllm.shape import ModelShape
from tests.unit.energy.meters.driver import Driver

SHAPE = ModelShape(1000, 300, 2, 16, 64)
FIRST_J = {"gpu": 22e6, "cpu": 200_000.0, "dram": 5_000.0}
RANGE_J = 262_144.0
Counters = dict[str, float | None]
Fault = Callable[[Counters], None]


class Machine:
    """A GPU of 300 W, a processor of 100 W and memory of 10 W, all of it under one request.

    A fault changes what the counters say; None is a counter that cannot be read.
    """

    def __init__(self, folder: Path, needs: tuple[str, ...] = ("gpu",)) -> None:
        self._now_s = 1000.0
        self._folder = folder
        self._driver = Driver(energy_mj=[0])
        self._fault: Fault | None = None
        self._joules = dict(FIRST_J)
        self._write()
        parts: list[Meter] = [NvmlMeter(self._driver, clock=self.clock, poll_s=None)]
        for domain in ("cpu", "dram"):
            file = CounterFile(folder / domain, domain, round(RANGE_J * 1e6), domain, 150.0)
            parts.append(FileCounterMeter([file], method="measured:rapl", clock=self.clock))
        meter = CombinedMeter(parts, clock=self.clock)
        self.account = Account(meter, SHAPE, clock=self.clock, needs=needs)
        self.account.start_serving()

    def clock(self) -> float:
        return self._now_s

    def _write(self) -> None:
        said: Counters = dict(self._joules)
        if self._fault is not None:
            self._fault(said)
        gpu_j = said["gpu"]
        self._driver.energy_mj = [None if gpu_j is None else round(gpu_j * 1e3)]
        for domain in ("cpu", "dram"):
            joules = said[domain]
            text = "" if joules is None else str(round(joules % RANGE_J * 1e6))
            (self._folder / domain).write_text(text)

    def request(self, name: str, faults: list[Fault | None]) -> Any:
        """One request with a step of half a second for each fault or none; its receipt."""
        request = Request(name, ((1,) * 4,), SamplingParams(), "m", created_s=5.0)
        sequence = Sequence(request, 0, [1] * 4096, 4, 0, frozenset(), max_len=4096)
        self.account.open(request)
        receipts: list[Receipt] = []
        for i, fault in enumerate(faults):
            self._spend(0.5, 1.0, fault)
            self.account.charge(Batch((Chunk(sequence, 4 + i, 1, True),)), 0.5)
            receipts += self.account.settle()
        self.account.finish(name, "completed", TokenCounts(cached=0, generated=2))
        for _ in range(3):
            self._spend(0.2, 0.05, faults[-1])
            receipts += self.account.drain()
        return receipts[-1]

    def _spend(self, seconds: float, load: float, fault: Fault | None) -> None:
        for domain, watts in (("gpu", 300.0), ("cpu", 100.0), ("dram", 10.0)):
            self._joules[domain] += watts * load * seconds
        self._now_s += seconds
        self._fault = fault
        self._write()


def says(domain: str, value: float | None) -> Fault:
    """The counter of a domain says this."""

    def fault(counters: Counters) -> None:
        counters[domain] = value

    return fault


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_faults_a_receipt_is_what_was_used(machine: Machine) -> None:
    receipt = machine.request("r", [None] * 6)
    assert (receipt.status, receipt.measured) == ("final", True)
    assert receipt.total_j == pytest.approx(3.0 * 410.0, rel=0.05)


@pytest.mark.parametrize(
    "glitch",
    [
        says("gpu", 200.0),
        says("gpu", float(2**60)),
        says("cpu", 0.0),
        says("dram", 1_000.0),
    ],
)
def test_one_wrong_reading_changes_no_receipt(machine: Machine, glitch: Fault) -> None:
    receipt = machine.request("r", [None, None, glitch, None, None, None])
    assert receipt.status == "final"
    assert receipt.total_j == pytest.approx(3.0 * 410.0, rel=0.05)
    assert machine.account.totals.unattributed_j == 0


def test_a_driver_that_is_loaded_again_bills_nobody_for_what_it_lost(machine: Machine) -> None:
    def reloaded(counters: Counters) -> None:
        counters["gpu"] = (counters["gpu"] or 0.0) - 22e6 - 350.0

    receipt = machine.request("r", [None, None, *[reloaded] * 4])
    assert (receipt.status, receipt.measured) == ("provisional", False)
    assert machine.account.totals.residual < 1e-9
    after = machine.request("s", [reloaded] * 6)
    assert after.total_j == pytest.approx(3.0 * 410.0, rel=0.05)


def test_memory_that_stands_still_leaves_receipts_their_rest(machine: Machine) -> None:
    dead = says("dram", 5_000.0)
    machine.request("before", [dead] * 24)
    receipt = machine.request("r", [dead] * 6)
    assert receipt.status == "final"
    assert receipt.total_j == pytest.approx(3.0 * 400.0, rel=0.05)
    assert receipt.method == "measured:nvml-energy+measured:rapl+unknown:dram"


def test_a_gpu_that_falls_off_the_bus_leaves_no_total_and_the_next_model_its_joules(
    machine: Machine,
) -> None:
    gone = says("gpu", None)
    machine.request("before", [gone] * 12)
    receipt = machine.request("r", [gone] * 6)
    assert (receipt.status, receipt.total_j) == ("unmetered", None)
    assert receipt.method.endswith("+unknown:gpu")
    machine.request("during the return", [None] * 6)
    back = machine.request("back", [None] * 6)
    assert back.status == "final"
    assert back.total_j == pytest.approx(3.0 * 410.0, rel=0.05)


def test_a_processor_whose_counters_are_denied_leaves_the_gpus_joules(tmp_path: Path) -> None:
    machine = Machine(tmp_path, needs=())

    def denied(counters: Counters) -> None:
        counters["cpu"] = counters["dram"] = None

    machine.request("before", [denied] * 12)
    receipt = machine.request("r", [denied] * 6)
    assert receipt.domains_j == {"gpu": pytest.approx(900.0, rel=0.05)}
