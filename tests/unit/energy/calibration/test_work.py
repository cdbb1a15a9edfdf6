"""Processes that work, and end with the context."""

import os
from pathlib import Path

import pytest

from greenllm.energy.calibration.work import WORKS, Work, busy
from tests.waiting import until


def _used_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("work", WORKS)
def test_a_thread_is_kept_busy_until_the_context_is_left(work: Work) -> None:
    with busy(1, work, 60.0) as pids:
        (pid,) = pids
        until(lambda: _used_ticks(pid) > 60, "a process to use CPU time")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_idle_is_no_process() -> None:
    with busy(0, "sums", 60.0) as pids:
        assert pids == []
