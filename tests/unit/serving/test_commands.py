"""What `greenllm serve` says when it starts."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.logging import RichHandler

from greenllm.config import ConfigError
from greenllm.energy.meters.scope import Scope
from serving import commands as serve
from serving.config import ServeConfig

LONG = Path("/a/very/long/folder") / ("name" * 30) / "ledger.sqlite"


def parts(name: str) -> Any:
    """As much of a server as is announced."""
    info = SimpleNamespace(
        parameters=2_600_000,
        weight_bytes=5_200_000,
        quantization="none",
        dtype="float32",
        device="cpu",
        runner="openvino",
    )
    meter = SimpleNamespace(method="modelled:x", measured=False)
    engine = SimpleNamespace(
        info=info,
        account=SimpleNamespace(meter=meter),
        policy=SimpleNamespace(source=None),
    )
    served = SimpleNamespace(name=name, info=info, engine=engine, threads="1", drafting="off")
    return SimpleNamespace(served=served, ledger=SimpleNamespace(path=LONG))


def announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **options: Any
) -> list[str]:
    monkeypatch.setattr(serve, "console", Console(stderr=True, highlight=False))
    config = ServeConfig(**options)
    serve.announce(config, parts(config.served_model_name or "bundled"), 8123)
    return capsys.readouterr().err.splitlines()


def test_lines_are_whole_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = announced(monkeypatch, capsys)
    assert f"ledger: {LONG}" in lines
    assert "listening on http://127.0.0.1:8123" in lines
    (curl,) = [line for line in lines if line.startswith("curl ")]
    assert "Authorization" not in curl
    words = shlex.split(curl)
    assert words[2] == "http://localhost:8123/v1/chat/completions"
    assert json.loads(words[-1])["model"] == "bundled"


@pytest.mark.parametrize(
    ("host", "listening", "asked"),
    [
        ("0.0.0.0", "http://0.0.0.0:8123", "http://localhost:8123"),
        ("::", "http://[::]:8123", "http://localhost:8123"),
        ("::1", "http://[::1]:8123", "http://[::1]:8123"),
        ("10.0.0.5", "http://10.0.0.5:8123", "http://10.0.0.5:8123"),
    ],
)
def test_addresses_are_urls(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host: str,
    listening: str,
    asked: str,
) -> None:
    lines = announced(monkeypatch, capsys, host=host)
    assert f"listening on {listening}" in lines
    assert lines[-1].startswith(f"curl -si {asked}/v1/")


def test_with_a_certificate_addresses_are_https(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = announced(monkeypatch, capsys, tls_cert=Path("c.pem"), tls_key=Path("k.pem"))
    assert "listening on https://127.0.0.1:8123" in lines
    assert lines[-1].startswith("curl -si https://localhost:8123/v1/")


def test_with_keys_the_line_to_try_has_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = announced(monkeypatch, capsys, api_keys=("sk-1", "sk-2"), served_model_name="it's")
    assert "Try it, with KEY set to one of the keys:" in lines
    words = shlex.split(lines[-1])
    assert words[words.index("Authorization: Bearer $KEY") - 1] == "-H"
    assert '"Authorization: Bearer $KEY"' in lines[-1]
    assert json.loads(words[-1])["model"] == "it's"
    assert "sk-" not in "".join(lines)


def replica(name: str, node: str = "n1", **fields: Any) -> dict[str, Any]:
    known = {"runner": "torch", "method": "modelled:x", "measured": False, "model": "bundled"}
    return {"replica": name, "node": node, **known, **fields}


def announced_replicas(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: list[dict[str, Any]],
    **options: Any,
) -> list[str]:
    monkeypatch.setattr(serve, "console", Console(stderr=True, highlight=False))
    serve.announce_replicas(ServeConfig(**options), found, 8123)
    return capsys.readouterr().err.splitlines()


def test_replicas_are_announced_one_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = [replica("r1"), replica("r2", "n2", measured=True, method="measured:rapl")]
    lines = announced_replicas(monkeypatch, capsys, found, replicas=2, data_dir=tmp_path)
    assert lines[:5] == [
        "bundled: 2 of 2 replicas on 2 node(s), Ray Serve",
        "replica r1: torch, energy modelled:x (not measured)",
        "replica r2: torch, energy measured:rapl (measured)",
        f"ledger: {tmp_path / 'ledger.sqlite'}",
        "listening on http://127.0.0.1:8123",
    ]
    assert json.loads(shlex.split(lines[-1])[-1])["model"] == "bundled"


@pytest.mark.parametrize(
    ("options", "bounds"),
    [({"min_replicas": 1}, "1 of 1 to 4"), ({"min_replicas": 4}, "1 of 4"), ({}, "1 of 4")],
)
def test_the_number_of_replicas_has_bounds(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, int],
    bounds: str,
) -> None:
    found = [replica("r1")]
    lines = announced_replicas(
        monkeypatch, capsys, found, replicas=4, served_model_name="mine", **options
    )
    assert lines[0] == f"mine: {bounds} replicas on 1 node(s), Ray Serve"


def test_replicas_that_do_not_tell_in_time_are_announced_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = announced_replicas(monkeypatch, capsys, [], replicas=2, model="some/model")
    assert lines[0] == "some/model: 0 of 2 replicas on 0 node(s), Ray Serve"
    assert json.loads(shlex.split(lines[-1])[-1])["model"] == "some/model"


def test_replicas_need_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^--replicas: .*pip install --editable '\.\[ray\]'"):
        serve.run_replicas(ServeConfig(replicas=2))


def test_replicas_are_started_and_announced_once_they_are_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "console", Console(stderr=True, highlight=False))
    config, started = ServeConfig(replicas=2), []

    def run(given: ServeConfig, on_ready: Callable[..., None]) -> None:
        started.append(given)
        on_ready(given, [replica("r1")], 8123)

    monkeypatch.setitem(sys.modules, "serving.cluster.deploy", SimpleNamespace(run=run))
    serve.run_replicas(config)
    assert started == [config]
    assert "bundled: 1 of 2 replicas on 1 node(s), Ray Serve" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org", ""])
def test_a_server_open_to_others_is_warned_of(host: str) -> None:
    (warning,) = serve.exposures(ServeConfig(host=host))
    for word in ("--api-keys", "/metrics", "/v1/energy", host):
        assert word in warning
    assert serve.exposures(ServeConfig(host=host, api_keys=("k",))) == []
    assert serve.exposures(ServeConfig(host=host, keys_file=Path("keys.json"))) == []


def test_what_others_can_look_into_is_warned_of(tmp_path: Path) -> None:
    data, keys = tmp_path / "data", tmp_path / "it's keys"
    config = ServeConfig(data_dir=data, keys_file=keys)
    assert serve.loose_modes(config) == []
    data.mkdir(mode=0o755)
    keys.touch(0o644)
    for path, warning in zip((data, keys), serve.loose_modes(config), strict=True):
        command = warning.partition(": ")[2]
        assert shlex.split(command) == ["chmod", "go=", str(path)]
        subprocess.run(shlex.split(command), check=True)
    assert serve.loose_modes(config) == []


def test_what_a_server_makes_is_private(tmp_path: Path) -> None:
    with serve.private_files():
        (tmp_path / "a").touch()
        (tmp_path / "b").mkdir()
    (tmp_path / "c").touch()
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert (modes["a"], modes["b"]) == (0o600, 0o700)
    assert modes["c"] != 0o600, "and only then"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_a_server_for_this_machine_is_not(host: str) -> None:
    assert serve.exposures(ServeConfig(host=host)) == []


def test_the_log_is_whole_lines_in_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "console", Console(stderr=True))
    handler = serve.log_handler()
    record = logging.LogRecord("x", logging.WARNING, "", 0, "word " * 60, None, None)
    handler.emit(record)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("word") == 60
    assert " WARNING word" in line
    monkeypatch.setattr(serve, "console", Console(stderr=True, force_terminal=True))
    assert isinstance(serve.log_handler(), RichHandler)


def test_a_server_shares_its_machine_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    found: list[list[Path]] = []
    scopes: list[Scope] = []

    def run(config: ServeConfig, scope: Scope) -> None:
        found.append(list(tmp_path.rglob("*.roster")))
        scopes.append(scope)

    monkeypatch.setattr(serve, "run_server", run)
    serve.serve(ServeConfig())
    serve.serve(ServeConfig(roster="off"))
    assert [len(paths) for paths in found] == [1, 0]
    assert [scope.roster is not None for scope in scopes] == [True, False]
    assert list(tmp_path.rglob("*.roster")) == [], "and leaves it"
