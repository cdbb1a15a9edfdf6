"""Commands that start servers leave none behind, however they are ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evals.load.processes import all_stats
from tests.service.processes import Forked, environment
from tests.waiting import is_running, until

TERM, HUP, INT, KILL = signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL
# A server that notes that it is asked to end, and goes on.
STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: pathlib.Path(sys.argv[2]).touch())
pathlib.Path(sys.argv[1]).touch()
while True:
    time.sleep(1)
"""
ASKER = """
import pathlib, sys, time
from evals.servers import running
from greenllm.interrupts import end_like_interrupts
end_like_interrupts()
is_up = pathlib.Path(sys.argv[2]).exists
with running([sys.executable, "-c", *sys.argv[1:]], lambda: is_up() or None) as (_, pid):
    print(pid, flush=True)
    time.sleep(600)
"""


def server_of(pid: int) -> int | None:
    """The process of a server that this one has started."""
    for child in (stat.pid for stat in all_stats() if stat.parent == pid):
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:4] == [b"-m", b"greenllm", b"serve"]:
            return child
    return None


@pytest.mark.parametrize("signals", [[INT], [TERM, TERM], [HUP], [KILL]])
def test_an_evaluation_leaves_no_server(tmp_path: Path, signals: list[int]) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    words = ["eval", "generated.upper", "--limit", "2000"]
    evaluation = Forked(words, out, err, environment())
    try:
        server = until(lambda: server_of(evaluation.pid), "a server")
        for number in signals:
            evaluation.send_signal(number)
        assert evaluation.wait() != 0
    finally:
        evaluation.kill()
    until(lambda: not is_running(server), "the server's end")


def test_a_second_interrupt_ends_a_server_that_does_not_listen(tmp_path: Path) -> None:
    up, asked = tmp_path / "up", tmp_path / "asked"
    command = [sys.executable, "-c", ASKER, STUBBORN, str(up), str(asked)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        server = int(asker.stdout.readline())
        asker.send_signal(TERM)
        until(asked.exists, "the server's being asked to end")
        asker.send_signal(TERM)
        assert is_running(server)
        asker.send_signal(INT)
        asker.wait()
    assert not is_running(server)
