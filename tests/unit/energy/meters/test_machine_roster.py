"""Servers of one machine and user find one roster; trouble with it stops no start."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from greenllm.energy.meters import roster
from greenllm.energy.meters.machine_roster import join_roster, private_folder, user_folder


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of this test's own."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    return folder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A made-up `/proc` of a machine with eight processors."""
    folder = tmp_path / "proc"
    (folder / "sys/kernel/random").mkdir(parents=True)
    (folder / "self/ns").mkdir(parents=True)
    (folder / "sys/kernel/random/boot_id").write_text("one\n")
    (folder / "self/ns/pid").symlink_to("pid:[1]")
    (folder / "cpuinfo").write_text("processor : 0\n" * 8)
    return folder


def name_of(proc: Path, tmp_path: Path) -> str:
    """The file that a server of this machine would join."""
    joined = join_roster(str(tmp_path / "shared"), proc=proc, sys=tmp_path / "sys")
    assert joined is not None
    (path,) = (tmp_path / "shared").iterdir()
    joined.leave()
    return path.name


def test_by_default_the_roster_is_in_the_users_runtime_folder(runtime: Path) -> None:
    joined = join_roster("auto")
    assert joined is not None
    (folder,) = runtime.iterdir()
    assert (folder.name, folder.stat().st_mode & 0o777) == ("greenllm", 0o700)
    (path,) = folder.iterdir()
    assert path.suffix == ".roster"
    joined.leave()
    assert list(folder.iterdir()) == []


def test_without_a_runtime_folder_it_is_with_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for elsewhere in ("", str(tmp_path / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", elsewhere)
        assert user_folder() == tmp_path / "tmp" / f"greenllm-{os.getuid()}"


def test_it_can_be_turned_off(runtime: Path) -> None:
    assert join_roster("off") is None
    assert list(runtime.iterdir()) == []


def test_a_folder_that_others_could_enter_is_closed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    assert private_folder(tmp_path / "open").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["file", "link", "somebody else's"])
def test_a_folder_that_is_not_the_users_is_not_used(
    tmp_path: Path,
    runtime: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = runtime / "greenllm"
    if kind == "file":
        folder.write_text("")
    elif kind == "link":
        folder.symlink_to(tmp_path / "tmp")
    else:
        folder.mkdir()
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert join_roster("auto") is None
    assert "the whole idle power counts here" in caplog.text
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_lock_that_somebody_holds_stops_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(roster, "_JOIN_PATIENCE_S", 0.01)
    first = join_roster(str(tmp_path / "shared"))
    assert first is not None
    (path,) = (tmp_path / "shared").iterdir()
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert join_roster(str(tmp_path / "shared")) is None
    assert "no roster of this machine's servers" in caplog.text
    first.leave()


def test_what_is_not_one_machine_does_not_share(tmp_path: Path, proc: Path) -> None:
    here = name_of(proc, tmp_path)
    assert name_of(proc, tmp_path) == here
    (proc / "sys/kernel/random/boot_id").write_text("two\n")
    rebooted = name_of(proc, tmp_path)
    (proc / "self/ns/pid").unlink()
    (proc / "self/ns/pid").symlink_to("pid:[2]")
    contained = name_of(proc, tmp_path)
    (proc / "self/status").write_text("Cpus_allowed_list:\t0-1\n")
    pinned = name_of(proc, tmp_path)
    assert len({here, rebooted, contained, pinned}) == 4
