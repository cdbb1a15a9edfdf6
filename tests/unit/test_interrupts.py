"""Signals that end a command, in processes of their own: each says what became of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from greenllm.interrupts import ended_with_parent
from tests.waiting import is_running, until

# A second signal comes while the first one's is being cleaned up after.
PROGRAM = """
import asyncio, os, signal, sys, time
from greenllm.interrupts import end_like_interrupts
ignored, loop, *numbers = sys.argv[1:]
if ignored:
    signal.signal(int(ignored), signal.SIG_IGN)
end_like_interrupts()
async def work():
    os.kill(os.getpid(), int(numbers[0]))
    await asyncio.sleep(0.5)
    print("went on", flush=True)
try:
    if loop:
        asyncio.run(work())
    else:
        os.kill(os.getpid(), int(numbers[0]))
        time.sleep(0.5)
        print("went on", flush=True)
except KeyboardInterrupt:
    try:
        for number in numbers[1:]:
            os.kill(os.getpid(), int(number))
        time.sleep(0.05)
        print("cleaned up", flush=True)
    except KeyboardInterrupt:
        print("cut short", flush=True)
"""
TERM, HUP, INT = signal.SIGTERM, signal.SIGHUP, signal.SIGINT


def said(numbers: Sequence[int], *, ignored: int | None = None, loop: bool = False) -> str:
    """What the program printed that these signals reached."""
    words = [str(ignored or ""), "loop" if loop else "", *(str(int(one)) for one in numbers)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("number", [TERM, HUP, INT])
def test_each_of_them_interrupts(number: int, loop: bool) -> None:
    assert said([number], loop=loop) == "cleaned up"


@pytest.mark.parametrize(
    ("numbers", "end"),
    [
        ([TERM, TERM], "cleaned up"),  # as `timeout` sends it
        ([HUP, HUP], "cleaned up"),  # as a shell whose terminal closes sends it
        ([TERM, HUP], "cleaned up"),
        ([TERM, INT], "cut short"),
        ([INT, TERM], "cut short"),
        ([INT, INT], "cut short"),
    ],
)
def test_nothing_but_ctrl_c_cuts_the_cleaning_short(numbers: list[int], end: str) -> None:
    assert said(numbers) == end


def test_what_is_ignored_stays_ignored() -> None:
    assert said([HUP], ignored=HUP) == "went on"


def test_a_background_command_that_ignores_interrupts_is_ended_all_the_same() -> None:
    assert said([INT], ignored=INT) == "went on"
    assert said([TERM], ignored=INT) == "cleaned up"


PARENT = """
import subprocess, sys, time
from greenllm.interrupts import ended_with_parent
child = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
process = subprocess.Popen(ended_with_parent(child), stdout=subprocess.PIPE, text=True)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_does_not_outlive_a_parent_that_is_killed() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    until(lambda: not is_running(pid), "the child's end")


def test_a_child_is_what_was_started_with_its_number_and_exit_code() -> None:
    child = [sys.executable, "-c", "import os, sys; print(os.getpid()); sys.exit(7)"]
    with subprocess.Popen(ended_with_parent(child), stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate()
    assert (int(said), process.returncode) == (process.pid, 7)


def test_a_program_that_is_not_there_is_named() -> None:
    command = ended_with_parent([os.path.join("no", "such", "program")])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.strip() == "no/such/program: No such file or directory"
