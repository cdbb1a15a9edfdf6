"""CPU time of this process tree and of the machine, from a made-up procfs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from greenllm.energy.meters.cputime import CpuClock
from tests.waiting import until

TICKS = os.sysconf("SC_CLK_TCK")


class Proc:
    """A procfs of files; times in seconds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.own_s = 0.0
        self.now_s = 0.0
        self.machine(0.0)

    def machine(self, busy_s: float) -> None:
        ticks = round(busy_s * TICKS)
        # user nice system idle iowait irq softirq steal guest
        (self.root / "stat").write_text(f"cpu  {ticks} 0 0 99999 888 0 0 77 66\ncpu0 1 2 3\n")

    def process(self, pid: int, used_s: float, children: str = "", ended_s: float = 0.0) -> None:
        task = self.root / str(pid) / "task" / str(pid)
        task.mkdir(parents=True, exist_ok=True)
        (task / "children").write_text(children)
        head = f"{pid} (a (strange) name) " + " ".join(["S", *"0" * 10])
        (self.root / str(pid) / "stat").write_text(
            f"{head} {round(used_s * TICKS)} 0 {round(ended_s * TICKS)} 0\n"
        )

    def clock(self) -> CpuClock:
        """One that believes a machine to do much in no time."""
        return CpuClock(
            self.root, own_s=lambda: self.own_s, clock=lambda: self.now_s, num_cpus=100_000
        )


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_times_start_at_zero_whatever_ran_before(proc: Proc) -> None:
    proc.own_s = 12.0
    proc.machine(500.0)
    times = proc.clock().read()
    assert (times.own_s, times.machine_s) == (0, 0)


def test_busy_time_leaves_idle_iowait_steal_and_guest_out(proc: Proc) -> None:
    clock = proc.clock()
    (proc.root / "stat").write_text(
        f"cpu  {TICKS} {2 * TICKS} {3 * TICKS} 100 100 {4 * TICKS} {5 * TICKS} 100 100\n"
    )
    assert clock.read().machine_s == pytest.approx(15)


def test_others_are_what_the_machine_used_beyond_us(proc: Proc) -> None:
    clock = proc.clock()
    proc.own_s = 1.0
    proc.machine(3.0)
    times = clock.read()
    assert times.own_s == 1
    assert times.machine_s == pytest.approx(3)


def test_coarse_ticks_never_make_the_others_run_backwards(proc: Proc) -> None:
    clock = proc.clock()
    proc.machine(2.0)
    others = [clock.read().machine_s]
    for step in range(1, 6):
        proc.own_s = step * 0.004  # the machine's tick comes later than our own time
        times = clock.read()
        others.append(times.machine_s - times.own_s)
    assert others == pytest.approx([2.0] * 6)


def test_time_that_no_processor_can_have_used_is_not_believed(proc: Proc) -> None:
    """Else the others would have it for ever, and a model its joules."""
    clock = CpuClock(proc.root, own_s=lambda: 0.0, clock=lambda: proc.now_s, num_cpus=2)
    for proc.now_s, busy_s in ((1.0, 1.5), (2.0, 5000.0), (3.0, 3.0), (4.0, 0.0), (5.0, 6.0)):
        proc.machine(busy_s)
        machine_s = clock.read().machine_s
        assert machine_s <= 6.0
    assert machine_s == pytest.approx(6.0)


def test_without_procfs_only_the_own_time_is_known(tmp_path: Path) -> None:
    own_s = iter([1.0, 4.0])
    clock = CpuClock(tmp_path / "nowhere", own_s=lambda: next(own_s), clock=lambda: 0.0)
    times = clock.read()
    assert (times.own_s, times.machine_s) == (3, 3)


@pytest.mark.parametrize("text", ["", "cpu 1 2\n", "cpu a b c d e f g\n"])
def test_a_garbled_stat_keeps_the_last_time(proc: Proc, text: str) -> None:
    clock = proc.clock()
    proc.machine(2.0)
    before = clock.read()
    (proc.root / "stat").write_text(text)
    assert clock.read() == before


def test_descendants_count_as_own(proc: Proc) -> None:
    me = os.getpid()
    clock = proc.clock()
    proc.process(me, 0.0, children="100001 100002 ")
    proc.process(100001, 1.0, children="100003")
    proc.process(100002, 2.0)
    proc.process(100003, 4.0)
    assert clock.read().own_s == 0, "children are looked for once a second"
    proc.machine(10.0)
    proc.now_s = 1.0
    times = clock.read()
    assert times.own_s == pytest.approx(7)
    assert times.machine_s == pytest.approx(10)


def test_a_child_adds_what_it_used_since_the_last_look_and_keeps_it_after_its_end(
    proc: Proc,
) -> None:
    me = os.getpid()
    clock = proc.clock()
    own_s = []
    for second, (used_s, children) in enumerate([(1.0, "100001"), (1.5, "100001"), (0.0, "")], 1):
        proc.process(me, 0.0, children=children)
        proc.process(100001, used_s)
        proc.now_s = float(second)
        own_s.append(clock.read().own_s)
    assert own_s == pytest.approx([1.0, 1.5, 1.5])


def test_a_busy_child_is_nobody_else_until_it_is_looked_at(proc: Proc) -> None:
    proc.process(os.getpid(), 0.0, "77")
    proc.process(77, 0.0)
    clock = proc.clock()
    for tenth in range(1, 31):
        proc.now_s = tenth / 10
        proc.machine(tenth / 10)
        proc.process(77, tenth / 10)
        times = clock.read()
        assert times.machine_s <= 3.0 + 1e-9
    assert times.own_s == pytest.approx(3.0)
    assert times.machine_s == pytest.approx(3.0)


def test_what_a_child_used_before_the_clock_is_not_counted(proc: Proc) -> None:
    proc.process(os.getpid(), 0.0, children="100001")
    proc.process(100001, 50.0)
    clock = proc.clock()
    proc.process(100001, 52.0)
    proc.now_s = 1.0
    assert clock.read().own_s == pytest.approx(2)


@pytest.mark.parametrize("children", ["100009", "not a pid"])
def test_a_child_that_cannot_be_read_adds_nothing(proc: Proc, children: str) -> None:
    clock = proc.clock()
    proc.process(os.getpid(), 0.0, children=children)
    proc.now_s = 1.0
    assert clock.read().own_s == 0


def test_a_process_that_ends_while_it_is_listed_is_no_error(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = proc.clock()

    def gone(self: Path, pattern: str) -> list[Path]:
        raise ProcessLookupError(3, f"no such process: {self} {pattern}")

    monkeypatch.setattr(Path, "glob", gone)
    proc.now_s = 1.0
    proc.own_s = 0.5
    assert clock.read().own_s == 0.5


def test_the_real_procfs_moves_forwards() -> None:
    clock = CpuClock()
    first = clock.read()
    assert sum(i * i for i in range(200_000)) > 0
    second = clock.read()
    assert second.own_s > first.own_s
    assert second.machine_s >= first.machine_s + (second.own_s - first.own_s)


def test_a_child_that_trains_is_told_apart_with_all_below_it(proc: Proc) -> None:
    me = os.getpid()
    clock = proc.clock()
    proc.process(me, 0.0, children="100001 100002")
    proc.process(100001, 1.0)
    proc.process(100002, 2.0, children="100003")
    proc.process(100003, 4.0)
    clock.training.add(100002)
    proc.machine(10.0)
    proc.now_s = 1.0
    times = clock.read()
    assert times.own_s == pytest.approx(1)
    assert times.train_s == pytest.approx(6)
    assert times.machine_s == pytest.approx(10)
    clock.training.discard(100002)
    assert clock.read().train_s == pytest.approx(6), "what it used stays where it was booked"


def test_the_tree_of_another_process_is_the_own_time(proc: Proc) -> None:
    proc.process(200001, 5.0, children="200002")
    proc.process(200002, 5.0)
    proc.own_s = 3.0
    clock = CpuClock(proc.root, tree_of=200001, clock=lambda: proc.now_s, num_cpus=1000)
    proc.process(200001, 6.0, children="200002")
    proc.process(200002, 7.0)
    proc.machine(4.0)
    proc.now_s = 0.1
    times = clock.read()
    assert times.own_s == pytest.approx(3)
    assert times.machine_s == pytest.approx(4)


def test_children_of_a_tree_that_end_unseen_are_their_parents_time(proc: Proc) -> None:
    """A command that is run and waited for between two looks is not lost."""
    proc.process(200001, 1.0, ended_s=5.0)
    clock = CpuClock(proc.root, tree_of=200001, clock=lambda: proc.now_s)
    proc.process(200001, 1.5, ended_s=9.0)
    proc.now_s = 1.0
    assert clock.read().own_s == pytest.approx(4.5)


def test_a_child_of_a_tree_is_counted_once_when_it_ends(proc: Proc) -> None:
    proc.process(200001, 1.0, "200002")
    proc.process(200002, 0.0)
    clock = CpuClock(proc.root, tree_of=200001, clock=lambda: proc.now_s)
    proc.process(200002, 3.0)
    proc.now_s = 1.0
    assert clock.read().own_s == pytest.approx(3)
    (proc.root / "200002" / "stat").unlink()  # it ends while the tree is read
    proc.now_s = 2.0
    assert clock.read().own_s == pytest.approx(3)
    proc.process(200001, 1.0, "", ended_s=3.5)
    proc.now_s = 3.0
    assert clock.read().own_s == pytest.approx(3.5)


def test_what_leaves_a_tree_leaves_its_time(proc: Proc) -> None:
    proc.process(200001, 1.0, "200002")
    proc.process(200002, 0.0)
    clock = CpuClock(proc.root, tree_of=200001, clock=lambda: proc.now_s)
    proc.process(200002, 3.0)
    seen = []
    for now_s, used_s in ((1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.5)):
        if now_s == 2.0:
            proc.process(200001, used_s, "")
        elif now_s > 2:
            proc.process(200001, used_s)
        proc.now_s = now_s
        seen.append(clock.read().own_s)
    assert seen == pytest.approx([3.0, 3.0, 3.0, 3.5])


def test_a_real_child_that_ended_unseen_is_counted() -> None:
    clock = CpuClock(tree_of=os.getpid())
    before_s = clock.read().own_s
    code = "import time\nwhile time.process_time() < 0.4: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    until(lambda: clock.read().own_s - before_s >= 0.35, "the child's time")


def test_a_number_that_is_given_out_again_is_another_process(proc: Proc) -> None:
    clock = proc.clock()
    looks = [("100001", 5.0), ("", 5.0), ("", 5.0), ("100001", 3.0)]
    for second, (children, used_s) in enumerate(looks, 1):
        proc.process(os.getpid(), 0.0, children=children)
        proc.process(100001, used_s)
        proc.now_s = float(second)
        times = clock.read()
    assert times.own_s == pytest.approx(8.0)


def test_a_child_that_is_missing_in_one_look_is_not_counted_twice(proc: Proc) -> None:
    clock = proc.clock()
    for second, children in enumerate(["100001", "", "100001"], 1):
        proc.process(os.getpid(), 0.0, children=children)
        proc.process(100001, 5.0 + second)
        proc.now_s = float(second)
        times = clock.read()
    assert times.own_s == pytest.approx(8.0)
