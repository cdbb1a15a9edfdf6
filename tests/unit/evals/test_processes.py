"""CPU time and memory of process trees."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from evals.load.processes import (
    Stat,
    TreeClock,
    all_stats,
    listener,
    memory_of,
    parse_stat,
    tree_of,
)
from tests.waiting import until

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"


def stat(pid: int, parent: int, own_s: float = 0.0, waited_s: float = 0.0) -> Stat:
    return Stat(pid, parent, 100 + pid, own_s, waited_s)


def test_a_stat_line_with_a_strange_name() -> None:
    numbers = ["7", *["0"] * 9, "150", "50", "30", "20", *["0"] * 4, "12345"]
    parsed = parse_stat(f"42 (a ) (b) S {' '.join(numbers)} 0 0", 100)
    assert parsed == Stat(42, 7, 12345, 2.0, 0.5)


def test_a_tree_is_all_that_descend() -> None:
    stats = [stat(1, 0), stat(2, 1), stat(3, 2), stat(4, 1), stat(9, 8), stat(8, 0)]
    assert {found.pid for found in tree_of(2, stats)} == {2, 3}
    assert {found.pid for found in tree_of(1, stats)} == {1, 2, 3, 4}
    assert tree_of(77, stats) == []


def test_a_child_that_was_waited_for_counts_once() -> None:
    clock = TreeClock(1)
    assert clock.look([stat(1, 0, 1.0), stat(2, 1, 5.0)]) == 6.0
    assert clock.look([stat(1, 0, 1.5, 5.5)]) == 7.0


def test_an_orphan_is_followed_and_kept_when_it_ends() -> None:
    clock = TreeClock(1)
    clock.look([stat(1, 0, 1.0), stat(2, 1, 1.0), stat(3, 2, 4.0), stat(50, 0)])
    moved = [stat(1, 0, 1.0, 1.0), stat(3, 50, 6.0), stat(50, 0)]
    assert clock.look(moved) == 8.0
    assert clock.look([stat(1, 0, 1.0, 1.0), stat(50, 0)]) == 8.0


def test_another_process_of_the_same_number_is_not_ours() -> None:
    clock = TreeClock(1)
    clock.look([stat(1, 0, 1.0), stat(2, 1, 1.0)])
    stranger = Stat(2, 70, 999, 500.0, 0.0)
    assert clock.look([stat(1, 0, 1.0, 1.0), stranger]) == 2.0


def test_time_of_real_children_is_seen_while_they_run_and_after() -> None:
    clock = TreeClock(os.getpid())
    before_s = clock.look(all_stats())
    with subprocess.Popen([sys.executable, "-c", BURN]) as child:
        until(lambda: clock.look(all_stats()) and child.poll() is not None, "the child's end")
    assert clock.look(all_stats()) - before_s >= 0.25


def test_memory_of_this_process() -> None:
    size, kind = memory_of([os.getpid()])
    assert size > 5e6
    assert kind in ("pss", "rss")


def test_the_listener_of_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listener(port) == os.getpid()
    assert listener(port) is None


@pytest.mark.parametrize("pids", [[], [2**22 + 5]])
def test_memory_of_nobody_is_nothing(pids: list[int]) -> None:
    assert memory_of(pids)[0] == 0
