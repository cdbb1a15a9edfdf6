"""What goes into the image serves from there: the wheel, with the Dockerfile's variables.

The packages of others are this environment's. Not covered: the base image, another user, a root
that really is read-only (what is written is looked for instead), and the build: `docker build`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import dockerfile
from tests.test_packaging import PACKAGES, build
from tests.waiting import PATIENCE_S

Snapshot = dict[str, int]


class Image:
    """The image's folders below one of the test's, and how a process runs in them."""

    def __init__(self, root: Path) -> None:
        self.root, self.packages = root, root / "opt"
        inside = {
            name: re.sub(r"^/(data|tmp)\b", rf"{root}/\1", text)
            for name, text in dockerfile.environment().items()
        }
        own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.packages)}
        self.environment = {**inside, **own}

    def popen(self, command: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
        """Start Python in the image."""
        with log.open("wb") as said:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=self.root / "data",
                env={**self.environment, **more},
                stdout=said,
                stderr=said,
            )

    def run(self, *command: str, **more: str) -> tuple[int, str]:
        """Exit code and output of Python in the image."""
        log = self.root / "tmp" / "said.txt"
        code = self.popen([*command], log, **more).wait(PATIENCE_S)
        return code, log.read_text(encoding="utf-8")

    def snapshot(self) -> Snapshot:
        """Everything that must not change: all but /data and /tmp."""
        return {str(path): path.lstat().st_mtime_ns for path in self.packages.rglob("*")}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    root = tmp_path_factory.mktemp("image")
    assert build(root / "wheels") == ""
    (wheel,) = (root / "wheels").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(root / "opt")
    for name in ("data", "tmp"):
        (root / name).mkdir()
    return Image(root)


def test_the_program_is_the_image_s_own(image: Image) -> None:
    code, said = image.run("-m", "greenllm", "--help")
    assert code == 0, said
    assert "serve" in said
    code, said = image.run("-c", f"import {', '.join(PACKAGES)}; print({', '.join(PACKAGES)})")
    assert code == 0, said
    assert said.count(f"{image.packages}/") == len(PACKAGES)


@pytest.mark.slow
def test_it_serves_writes_to_its_volume_alone_and_stops(
    image: Image, until: Callable[..., Any]
) -> None:
    before = image.snapshot()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {
        "GREENLLM_HOST": "127.0.0.1",
        "GREENLLM_PORT": port,
        "GREENLLM_METER": "modelled",
        "GREENLLM_DEVICE": "cpu",
        "GREENLLM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(image.root / "tmp"),
    }
    check = dockerfile.words("HEALTHCHECK")[1:]
    log = image.root / "tmp" / "server.log"
    server = image.popen(
        ["-m", *dockerfile.words("ENTRYPOINT"), *dockerfile.words("CMD")], log, **here
    )

    def is_up() -> bool:
        assert server.poll() is None, log.read_text(encoding="utf-8")
        return f"listening on http://127.0.0.1:{port}" in log.read_text(encoding="utf-8")

    try:
        until(is_up, "the server")
        assert image.run(*check, GREENLLM_PORT=port) == (0, "")
        body = {"model": "bundled", "prompt": "Once upon a time", "max_tokens": 8}
        url = f"http://127.0.0.1:{port}/v1/completions"
        answer = httpx.post(url, json=body, timeout=PATIENCE_S, trust_env=False)
        assert answer.status_code == 200
        assert float(answer.headers["x-energy-joules"]) > 0
        server.send_signal(getattr(signal, dockerfile.last("STOPSIGNAL")))
        assert server.wait(PATIENCE_S) == 0, log.read_text(encoding="utf-8")
    finally:
        server.kill()
        server.wait(PATIENCE_S)
    assert image.run(*check, GREENLLM_PORT=port)[0] == 1
    assert (image.root / "data" / "ledger.sqlite").is_file()
    assert image.snapshot() == before
