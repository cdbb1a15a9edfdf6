"""What others have written is read only if it is a file, and only so much of it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from greenllm.given_files import read_bytes, read_start, read_text


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def make_nothing(path: Path) -> None:
    """There is no file."""


@pytest.mark.parametrize(
    "make", [make_pipe, make_folder, make_device, make_loop, make_socket, make_nothing]
)
def test_what_is_no_file_is_an_error_at_once(tmp_path: Path, make: object) -> None:
    path = tmp_path / "config.json"
    assert callable(make)
    make(path)
    for read in (read_bytes, read_start):
        with pytest.raises(OSError):  # noqa: PT011  # its kinds are the system's
            read(path, 10)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"0123456789")
    link.symlink_to(path)
    assert read_bytes(link, 10) == read_start(path, 99) == b"0123456789"
    assert read_start(path, 3) == b"012"
    with pytest.raises(OSError, match="larger than 9 bytes") as caught:
        read_bytes(path, 9)
    assert str(path) in str(caught.value)


def test_text_is_as_python_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("a\r\nb\rc\nü".encode())
    assert read_text(path, 99) == path.read_text(encoding="utf-8") == "a\nb\nc\nü"
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(path, 99)
