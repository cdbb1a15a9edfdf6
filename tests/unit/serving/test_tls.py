"""HTTPS: certificate and key are looked at first, and then used."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from greenllm.config import ConfigError
from serving.config import HttpOptions
from serving.front_door import FrontDoor, StartError, check_tls, take_port
from tests.waiting import PATIENCE_S


@dataclass(frozen=True)
class Pair:
    """A certificate for localhost, and its key."""

    cert: Path
    key: Path

    @property
    def options(self) -> HttpOptions:
        return HttpOptions(tls_cert=self.cert, tls_key=self.key)


def make_pair(folder: Path, *protection: str) -> Pair:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not installed")
    pair = Pair(folder / "cert.pem", folder / "key.pem")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(pair.key), "-out", str(pair.cert), *(protection or ("-nodes",)))
    command = ["openssl", "req", "-x509", "-days", "2", *curve, *name, *files]
    subprocess.run(command, check=True, capture_output=True)
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"))


def test_a_certificate_that_can_be_used_is_taken(pair: Pair) -> None:
    check_tls(HttpOptions())
    check_tls(pair.options)


def test_what_cannot_be_used_is_told_at_once(pair: Pair, tmp_path: Path) -> None:
    locked = make_pair(tmp_path, "-passout", "pass:secret")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("hello")
    wrong = [
        Pair(tmp_path / "missing.pem", pair.key),
        Pair(pair.cert, tmp_path / "missing.pem"),
        Pair(garbage, pair.key),
        Pair(pair.cert, garbage),
        Pair(pair.cert, locked.key),
        locked,
    ]
    for one in wrong:
        with pytest.raises(StartError, match=r"^cannot use --tls-cert .* --tls-key .*: .+"):
            check_tls(one.options)


@pytest.mark.parametrize("given", [{"tls_cert": Path("a.pem")}, {"tls_key": Path("a.pem")}])
def test_one_needs_the_other(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs --tls-"):
        HttpOptions(**given)


def test_the_server_speaks_https(pair: Pair) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": scope["scheme"].encode()})

    async def run() -> str:
        listener, ready = take_port("127.0.0.1", 0), asyncio.Event()
        door = FrontDoor(
            app,
            pair.options,
            on_ready=ready.set,
            on_signal=lambda: None,
            on_drained=lambda: None,
        )
        serving = asyncio.create_task(door.serve(sockets=[listener]))
        await ready.wait()
        trust = ssl.create_default_context(cafile=str(pair.cert))
        async with httpx.AsyncClient(verify=trust, trust_env=False) as client:
            answer = await client.get(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        door.should_exit = True
        await serving
        listener.close()
        return answer.text

    assert asyncio.run(asyncio.wait_for(run(), PATIENCE_S)) == "https"
