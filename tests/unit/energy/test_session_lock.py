"""A session's lock outlives nobody, and only one takes it over."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from greenllm.energy import session_lock
from greenllm.energy.session_lock import hold, take_over

HOLDER = """
    import sys, time
    from pathlib import Path
    from greenllm.energy.session_lock import hold

    lock = hold(Path(sys.argv[1]), "s")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_a_lock_that_is_held_is_not_taken_over(ledger: Path) -> None:
    own = hold(ledger, "s")
    assert own is not None
    assert take_over(ledger, "s") is None
    assert take_over(ledger, "unknown") is None
    own.leave()
    taken = take_over(ledger, "s")
    assert taken is not None
    assert take_over(ledger, "s") is None
    taken.release()
    assert list(ledger.parent.iterdir()) == []


def test_a_killed_process_lets_go(ledger: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(ledger)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert take_over(ledger, "s") is None
        holder.kill()
    taken = take_over(ledger, "s")
    assert taken is not None
    taken.release()


def test_a_file_that_somebody_has_just_removed_is_not_taken(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = hold(ledger, "s")
    assert own is not None
    own.leave()
    (path,) = ledger.parent.iterdir()
    real = fcntl.flock

    def remove_and_lock(file: int, operation: int) -> None:
        path.unlink()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    assert take_over(ledger, "s") is None


def test_where_files_cannot_be_locked_there_is_no_lock(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert hold(ledger, "s") is None
    assert hold(ledger / "missing", "s") is None
    assert list(ledger.parent.iterdir()) == []


def test_lines_are_there_for_whoever_takes_over(ledger: Path) -> None:
    own = hold(ledger, "s")
    assert own is not None
    for name in "abc":
        own.note(name, f"about {name}")
    own.forget(["b"])
    own.leave()
    taken = take_over(ledger, "s")
    assert taken is not None
    assert taken.lines() == ["about a", "about b", "about c"], "as long as there are few"
    taken.release()


def test_lines_that_are_forgotten_leave_when_there_are_many(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_lock, "_MOST_BYTES", 1000)
    own = hold(ledger, "s")
    assert own is not None
    for number in range(1000):
        own.note(str(number), f"about {number}")
        own.forget([str(number - 1)])
    assert own.lines()[-1] == "about 999"
    assert len("\n".join(own.lines())) < 2000
    own.release()
