"""A calibration on a simulated machine: the truth is found, whoever tells it and however late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greenllm.energy.calibration.course import Course, Stage, plan
from greenllm.energy.calibration.fit import PowerSample, fit_power
from greenllm.energy.calibration.wall import FileWall, WallError, WallSample
from greenllm.energy.calibration.work import Work
from greenllm.energy.meters.cputime import CpuClock, CpuTimes

IDLE_W, DYNAMIC_W = 40.0, 6.0


class Machine(CpuClock):
    """Four hardware threads, of which others use a tenth of one; its power follows after 1 s."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"), own_s=lambda: 0.0, clock=lambda: 0.0)
        self.now_s = 1_790_000_000.0
        self.num_busy, self.lagging, self.used_s = 0.0, 0.0, 0.0
        self.seen: list[set[int]] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.used_s += seconds * (self.num_busy + 0.1)
        self.lagging += (self.num_busy - self.lagging) * min(1.0, seconds)

    def read(self) -> CpuTimes:
        self.seen.append(set(self.training))
        return CpuTimes(0.0, self.used_s)

    @property
    def watts(self) -> float:
        return IDLE_W + DYNAMIC_W * (self.lagging + 0.1)

    @contextmanager
    def work(self, num_threads: int, work: Work, seconds: float) -> Iterator[list[int]]:
        self.num_busy = num_threads
        yield [100 + n for n in range(num_threads)]
        self.num_busy = 0


class Wall:
    """Tells the power of the machine, but for the moments at which it fails."""

    name = "a wall meter"

    def __init__(self, machine: Machine, fails_from_s: float = 1e12) -> None:
        self._machine = machine
        self._fails_from_s = fails_from_s
        self.num_polls = 0

    def poll(self, now_s: float) -> WallSample:
        self.num_polls += 1
        if now_s >= self._fails_from_s or self.num_polls % 7 == 0:
            raise WallError("timed out")
        return WallSample(now_s, self._machine.watts)

    def between(self, from_s: float, to_s: float) -> list[WallSample]:
        return []


@pytest.fixture
def machine() -> Machine:
    return Machine()


def _course(machine: Machine, wall: Wall | FileWall) -> Course:
    return Course(wall, machine, work=machine.work, clock=machine.clock, sleep=machine.sleep)


def test_the_plan_is_idle_one_half_and_all_with_two_kinds_of_work() -> None:
    stages = plan(8, 30.0)
    assert [stage.num_busy for stage in stages] == [0, 1, 1, 4, 4, 8, 8]
    assert {stage.work for stage in stages} == {"sums", "matrix"}
    assert sum(stage.seconds for stage in stages) == 4 * 30.0
    assert [stage.num_busy for stage in plan(2, 30.0)] == [0, 1, 1, 2, 2]
    assert [stage.num_busy for stage in plan(1, 30.0)] == [0, 1, 1]
    assert (str(stages[0]), str(stages[-1])) == ("idle, 30 s", "8 busy with matrix, 15 s")


def test_the_watts_of_a_machine_are_found(machine: Machine) -> None:
    course = _course(machine, Wall(machine))
    assert [stage.num_busy for stage in course.run(plan(4, 30.0))] == [0, 1, 1, 2, 2, 4, 4]
    assert course.last_w == pytest.approx(machine.watts, abs=1.0)
    fit = fit_power(course.samples())
    assert fit.idle_w == pytest.approx(IDLE_W, abs=0.3)
    assert fit.dynamic_w == pytest.approx(DYNAMIC_W, abs=0.1)
    assert fit.uncertainty < 0.05


def test_working_processes_are_told_apart_while_they_work(machine: Machine) -> None:
    list(_course(machine, Wall(machine)).run([Stage(2, "sums", 4.0), Stage(0, "sums", 4.0)]))
    assert machine.seen[0] == {100, 101}
    assert machine.seen[-1] == set()


def test_what_has_not_settled_is_left_out(machine: Machine) -> None:
    course = _course(machine, Wall(machine))
    list(course.run([Stage(0, "sums", 12.0), Stage(4, "sums", 12.0)]))
    loads = [sample.busy_cpus for sample in course.samples()]
    assert loads == pytest.approx([0.1 if load < 2 else 4.1 for load in loads])


def test_a_meter_that_never_answers_is_an_error(machine: Machine) -> None:
    course = _course(machine, Wall(machine, fails_from_s=0.0))
    list(course.run(plan(2, 10.0)))
    with pytest.raises(WallError, match="timed out"):
        course.samples()


def _row(machine: Machine) -> str:
    return f"{machine.now_s:.3f},{machine.watts:.3f}\n"


def test_a_file_that_grows_is_read_while_it_does(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "plug.csv"
    sleep = machine.sleep

    def log_and_sleep(seconds: float) -> None:
        sleep(seconds)
        with path.open("a") as file:
            file.write(_row(machine))

    course = Course(
        FileWall(path), machine, work=machine.work, clock=machine.clock, sleep=log_and_sleep
    )
    list(course.run(plan(4, 30.0)))
    path.unlink()
    assert fit_power(course.samples()).dynamic_w == pytest.approx(DYNAMIC_W, abs=0.1)


def test_rows_that_come_late_are_waited_for(machine: Machine, tmp_path: Path) -> None:
    path, rows = tmp_path / "late.csv", ["timestamp,watts\n"]
    sleep = machine.sleep

    def remember_and_sleep(seconds: float) -> None:
        sleep(seconds)
        rows.append(_row(machine))
        if machine.now_s > 1_790_000_130.0:
            path.write_text("".join(rows))

    course = Course(
        FileWall(path), machine, work=machine.work, clock=machine.clock, sleep=remember_and_sleep
    )
    list(course.run(plan(4, 30.0)))
    assert course.samples() == []
    found: list[PowerSample] = course.samples(wait_s=60.0)
    assert fit_power(found).dynamic_w == pytest.approx(DYNAMIC_W, abs=0.1)
