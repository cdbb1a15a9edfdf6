"""One server looks after a folder of jobs; another waits until it has ended."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from serving.jobs.folder_lock import FolderLock
from serving.jobs.runner import JobRunner
from serving.jobs.store import JobStore
from tests.waiting import PATIENCE_S

HOLDER = """
import pathlib, sys
from serving.jobs.folder_lock import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
assert lock.take()
print("held", flush=True)
sys.stdin.read()
"""


def test_one_holds_it_and_whoever_comes_later_waits(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / "jobs"), FolderLock(tmp_path / "jobs")
    assert first.take()
    assert first.take(), "as often as one likes"
    assert not second.take()
    first.release()
    assert second.take()
    second.release()


def test_a_holder_that_is_killed_lets_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = FolderLock(tmp_path)
        assert not lock.take()
        holder.kill()
        holder.wait()
    assert lock.take()
    lock.release()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(OSError, match="exists"):
        FolderLock(tmp_path / "jobs").take()


def test_a_second_server_starts_no_jobs_until_the_first_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turned = asyncio.Event()
    monkeypatch.setattr(JobRunner, "turn", lambda self: turned.set())
    first = FolderLock(tmp_path / "jobs")
    assert first.take()

    async def carry_out() -> None:
        runner = JobRunner(JobStore(tmp_path / "jobs"), tmp_path / "adapters", lambda *told: None)
        running = asyncio.create_task(runner.run())
        while "another server looks after them" not in caplog.text:
            await asyncio.sleep(0.01)
        assert not turned.is_set()
        first.release()
        await asyncio.wait_for(turned.wait(), PATIENCE_S)
        await runner.stop(1.0)
        await running

    asyncio.run(carry_out())
    assert first.take(), "it has let go"
    first.release()
