"""A server whose engine is lost answers everybody and ends, for another to be started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.service.processes import environment
from tests.waiting import PATIENCE_S, until

SERVER = """
import sys, time
from greenllm.engine.native import NativeEngine
from greenllm.__main__ import main

def step(self):
    {what}

NativeEngine.step = step
main()
"""


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise SystemExit('the device is gone')", "the device is gone"),
        ("time.sleep(100_000)", "a step has not ended for 2 s"),
    ],
)
def test_a_server_ends_with_its_engine(tmp_path: Path, what: str, reason: str) -> None:
    said = tmp_path / "stderr"
    words = [
        "serve",
        "bundled",
        "--port",
        "0",
        "--step-timeout-s",
        "2",
        "--data-dir",
        str(tmp_path),
    ]
    command = [sys.executable, "-c", SERVER.format(what=what), *words]
    env = environment(PYTHONPATH=os.pathsep.join(sys.path))
    with said.open("wb") as stderr, subprocess.Popen(command, stderr=stderr, env=env) as process:
        try:
            url = until(lambda: _url(said.read_text()), "the server's address")
            body = {"model": "bundled", "prompt": "a", "max_tokens": 2}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_S)
            assert answer.status_code == 500
            assert "the engine stopped" in answer.json()["error"]["message"]
            assert process.wait(PATIENCE_S) == 2
        finally:
            process.kill()
    assert f"the engine has stopped: {reason}" in " ".join(said.read_text().split())


def _url(text: str) -> str | None:
    found = [word for word in text.split() if word.startswith("http://")]
    return found[0].rstrip("/") if found else None
