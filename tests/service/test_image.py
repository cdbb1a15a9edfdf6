"""The Dockerfile's build steps in a clean folder, and the server that comes out of them.

What COPY copies is all there is, the RUN lines run as they stand, and the last stage gets what it
takes from the one before: a file that is not copied or not packed fails here. Packages of others
are lent by this environment, so nothing is downloaded; where they are not the pinned ones there is
nothing to lend. Not covered: the base image, another user, a root that really is read-only (what
is written is looked for instead).
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dockerfile import Build, Stage, Step, read, shell_environment

ROOT = Path(__file__).resolve().parents[2]
STAGES = read((ROOT / "Dockerfile").read_text(encoding="utf-8"))[1]
OPT = "opt/greenllm"
Snapshot = dict[str, int]


def unpinned() -> list[str]:
    """What cannot be lent: packages in another version than the pinned one, a missing backend."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in text.splitlines() if "==" in line)
    here = {name: installed(name) for name in pins}
    wrong = [name for name, version in here.items() if version not in (None, pins[name])]
    return wrong + [name for name in ("hatchling",) if here[name] is None]


def installed(name: str) -> str | None:
    """Version of a package, without what says how it was built."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def lend(shelf: Path) -> Callable[[Path], None]:
    """Makes a virtual environment find the packages of this one, all but greenllm.

    Its own setuptools, which Python 3.11 puts there, is what a download would replace.
    """
    shelf.mkdir(parents=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "greenllm" not in path.name and path.suffix != ".pth":
            (shelf / path.name).symlink_to(path)

    def to(venv: Path) -> None:
        (packages,) = venv.glob("lib/python*/site-packages")
        for path in packages.glob("setuptools*"):
            shutil.rmtree(path)
        (packages / "lent.pth").write_text(f"{shelf}\n")

    return to


class Image:
    """The last stage's folder, and how a process runs in it."""

    def __init__(self, root: Path, final: Stage, build: Build) -> None:
        self.root = root
        plain = final.environment({"PATH": os.defpath})
        self.environment = {name: build.inside(text) for name, text in plain.items()}
        self.command = final.last("ENTRYPOINT").words + final.last("CMD").words
        check = final.last("HEALTHCHECK").rest.removeprefix("CMD ")
        self.check = Step("CMD", {}, check).words
        self.cwd = root / "read-only"

    def popen(self, command: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
        """Start a program of the image."""
        program = shutil.which(command[0], path=self.environment["PATH"])
        assert program is not None
        with log.open("wb") as said:
            return subprocess.Popen(
                [program, *command[1:]],
                cwd=self.cwd,
                env={**self.environment, **more},
                stdout=said,
                stderr=said,
            )

    def run(self, *command: str, **more: str) -> tuple[int, str]:
        """Exit code and output of a program of the image."""
        log = self.root / "tmp" / "said.txt"
        code = self.popen([*command], log, **more).wait(60)
        return code, log.read_text(encoding="utf-8")

    def snapshot(self) -> Snapshot:
        """Everything that must not change: all but /data and /tmp."""
        found = {}
        for top in (self.root / "opt", self.cwd):
            for path in (top, *top.rglob("*")):
                found[str(path)] = path.lstat().st_mtime_ns
        return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What `docker build` would make, but for the base image."""
    if missing := unpinned():
        pytest.skip(f"not here as pinned: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("image")
    root, scratch = folder / "root", folder / "scratch"
    scratch.mkdir()
    build = Build(ROOT, root, shell_environment(scratch), lend(folder / "lent" / "site-packages"))
    *earlier, final = STAGES
    build.run(earlier)
    kept = {f"{root}{step.words[0]}" for step in final.all("COPY")}
    assert kept == {f"{root}/{OPT}"}
    shutil.rmtree(root / "src")
    shutil.rmtree(root / "wheels")
    image = Image(root, final, build)
    for path in (root / "data", root / "tmp", image.cwd):
        path.mkdir()
    image.cwd.chmod(0o555)
    return image


def test_the_program_is_the_image_s_own(image: Image) -> None:
    code, said = image.run("greenllm", "--help")
    assert code == 0, said
    assert "serve" in said
    names = ("greenllm", "serving", "finetune", "evals")
    code, said = image.run(
        "python", "-c", f"import {', '.join(names)}; print(*({', '.join(names)}))"
    )
    assert code == 0, said
    assert said.count(f"{image.root}/{OPT}/lib/") == len(names)


def test_its_bytecode_and_its_licences_are_there(image: Image) -> None:
    (packages,) = (image.root / OPT).glob("lib/python*/site-packages")
    package = packages / "greenllm"
    sources = {path.stem for path in package.glob("*.py")}
    compiled = {path.name.partition(".")[0] for path in package.glob("__pycache__/*.pyc")}
    assert len(sources) > 10
    assert compiled == sources
    (licences,) = packages.glob("greenllm-*.dist-info/licenses")
    assert {path.name for path in licences.iterdir()} == {"LICENSE", "NOTICE"}


@pytest.mark.slow
def test_it_serves_writes_to_its_volume_alone_and_stops(
    image: Image, until: Callable[..., Any]
) -> None:
    before = image.snapshot()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {
        "GREENLLM_HOST": "127.0.0.1",
        "GREENLLM_PORT": str(port),
        "GREENLLM_METER": "modelled",
        "GREENLLM_DEVICE": "cpu",
        "GREENLLM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(image.root / "tmp"),
    }
    log = image.root / "tmp" / "server.log"
    server = image.popen(image.command, log, **here)

    def is_up() -> bool:
        assert server.poll() is None, log.read_text(encoding="utf-8")
        return f"listening on http://127.0.0.1:{port}" in log.read_text(encoding="utf-8")

    try:
        until(is_up, "the server", 120.0)
        assert image.run(*image.check, GREENLLM_PORT=str(port)) == (0, "")
        body = {"model": "bundled", "prompt": "Once upon a time", "max_tokens": 8}
        url = f"http://127.0.0.1:{port}/v1/completions"
        answer = httpx.post(url, json=body, timeout=60.0, trust_env=False)
        assert answer.status_code == 200
        assert float(answer.headers["x-energy-joules"]) > 0
        since_s = time.monotonic()
        server.send_signal(getattr(signal, STAGES[-1].last("STOPSIGNAL").rest))
        assert server.wait(60) == 0, log.read_text(encoding="utf-8")
        assert time.monotonic() - since_s < 30
    finally:
        server.kill()
        server.wait(60)
    assert image.run(*image.check, GREENLLM_PORT=str(port))[0] == 1
    assert (image.root / "data" / "ledger.sqlite").is_file()
    after = image.snapshot()
    assert {path for path in after if after[path] != before.get(path)} == set()
