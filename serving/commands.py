"""`greenllm serve`: load with a spinner, print one line to try, serve."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler

from greenllm.clashes import find_clashes
from greenllm.config import ConfigError
from greenllm.energy.carbon.policy import world_warning
from greenllm.energy.meters.choose import open_meter
from greenllm.energy.meters.cputime import CpuClock
from greenllm.energy.meters.machine_roster import join_roster
from greenllm.energy.meters.scope import Scope
from serving.config import ServeConfig, is_loopback

if TYPE_CHECKING:
    from serving.server import Parts

console = Console(stderr=True, highlight=False, emoji=False)


def serve(config: ServeConfig) -> None:
    """Serve until interrupted.

    Raises:
        GreenllmError: the server cannot start.
    """
    logging.basicConfig(level="WARNING", handlers=[log_handler()], format="%(message)s")
    logging.getLogger("huggingface_hub").propagate = False  # it prints what it says itself
    # Threads that spin at barriers burn joules, and stall each other when a core is taken away.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not console.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings = (*find_clashes(), *exposures(config), *loose_modes(config), world_warning(config))
    for warning in filter(None, warnings):
        _say(f"[yellow]warning:[/] {warning}")
    with private_files():
        _serve_as_told(config)


@contextmanager
def private_files() -> Iterator[None]:
    """What is made meanwhile is its owner's alone: ledger, uploads, jobs, adapters."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _serve_as_told(config: ServeConfig) -> None:
    if config.replicas is not None:
        run_replicas(config)
        return
    roster = join_roster(config.roster)
    try:
        run_server(config, Scope(CpuClock(), devices=config.gpus, roster=roster))
    finally:
        if roster is not None:
            roster.leave()


def run_server(config: ServeConfig, scope: Scope) -> None:
    """Serve one engine until interrupted.

    Raises:
        GreenllmError: the server cannot start.
    """
    meter, first = open_meter(config, scope)
    with console.status("importing torch") as status:
        server = importlib.import_module("serving.server")
        transformers_logging = importlib.import_module("transformers.utils.logging")
        transformers_logging.disable_progress_bar()
        status.update(f"loading {config.model}")

        def on_ready(config: ServeConfig, parts: Parts, port: int) -> None:
            status.stop()
            announce(config, parts, port)

        server.serve(config, meter, first, on_ready, partial(follow, scope.clock))


def run_replicas(config: ServeConfig) -> None:
    """Serve replicas on Ray until interrupted.

    Raises:
        GreenllmError: Ray is not installed, or they cannot start.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "--replicas: Ray is not installed; pip install --editable '.[ray]' in greenllm's"
            " folder",
            "replicas",
        )
    with console.status(f"starting {config.replicas} replicas") as status:
        deploy = importlib.import_module("serving.cluster.deploy")

        def on_ready(config: ServeConfig, found: Sequence[Mapping[str, Any]], port: int) -> None:
            status.stop()
            announce_replicas(config, found, port)

        deploy.run(config, on_ready)


def follow(clock: CpuClock, pid: int, is_training: bool) -> None:
    """Tell the meter's clock whose CPU time is training's."""
    if is_training:
        clock.training.add(pid)
    else:
        clock.training.discard(pid)


def log_handler() -> logging.Handler:
    """On a terminal in colour and columns; elsewhere one line each, that can be searched."""
    if console.is_terminal:
        return RichHandler(console=console, show_path=False)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def exposures(config: ServeConfig) -> list[str]:
    """What a server gives away that others can reach."""
    if config.needs_key or is_loopback(config.host):
        return []
    return [
        f"--host {config.host} without --keys-file or --api-keys: whoever reaches this machine can"
        " use the model, load adapters, and read every receipt at /v1/energy and all of /metrics"
    ]


def loose_modes(config: ServeConfig) -> list[str]:
    """The data folder and the keys file, where other users of this machine can look into them."""
    found = [path for path in (config.data_path, config.keys_path) if path and _is_loose(path)]
    return [
        f"other users of this machine may look into {path}: chmod go= {shlex.quote(str(path))}"
        for path in found
    ]


def _is_loose(path: Path) -> bool:
    return path.exists() and bool(path.stat().st_mode & 0o077)


def address(config: ServeConfig, host: str, port: int) -> str:
    """The URL of a server."""
    scheme = "http" if config.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _say(text: str, *, markup: bool = True) -> None:
    """Print a line as it is: where there is no terminal there are no columns to wrap it at."""
    console.print(text, soft_wrap=True, markup=markup)


def announce(config: ServeConfig, parts: Parts, port: int) -> None:
    """Say what is served, how it is metered, and how to try it."""
    served, info = parts.served, parts.served.info
    meter = served.engine.account.meter
    name = served.name
    size = f"{info.parameters / 1e6:.1f}M parameters, {info.weight_bytes / 1e6:.1f} MB"
    _say(f"[green]{name}[/] ({size}, {info.quantization}, {info.dtype}, {info.device})")
    _say(f"runner: {info.runner}, threads: {served.threads}")
    _say(f"speculation: {served.drafting}")
    _say(f"energy: {meter.method} ({'measured' if meter.measured else 'not measured'})")
    source = served.engine.policy.source
    if source is not None:
        value = source.intensity(0.0)
        year = f", {value.year}" if value.year else ""
        _say(f"carbon: {value.g_per_kwh:g} g/kWh, {value.name} ({value.source}{year})")
    _say(f"ledger: {parts.ledger.path}", markup=False)
    _say_how_to_try(config, name, port)


def _say_how_to_try(config: ServeConfig, name: str, port: int) -> None:
    _say(f"listening on {address(config, config.host, port)}", markup=False)
    keyed = config.needs_key
    _say(f"\nTry it{', with KEY set to one of the keys' if keyed else ''}:\n")
    host = "localhost" if config.host in ("0.0.0.0", "127.0.0.1", "::") else config.host
    _say(curl_line(address(config, host, port), name, keyed=keyed), markup=False)


def announce_replicas(config: ServeConfig, found: Sequence[Mapping[str, Any]], port: int) -> None:
    """Say what is served, by how many, and how to try it."""
    least = config.min_replicas or config.replicas
    bounds = f"{config.replicas}" if least == config.replicas else f"{least} to {config.replicas}"
    nodes = len({one["node"] for one in found})
    name = config.served_model_name or next((one["model"] for one in found), config.model)
    _say(f"[green]{name}[/]: {len(found)} of {bounds} replicas on {nodes} node(s), Ray Serve")
    for one in found:
        metered = "measured" if one["measured"] else "not measured"
        _say(f"replica {one['replica']}: {one['runner']}, energy {one['method']} ({metered})")
    _say(f"ledger: {config.ledger_path}", markup=False)
    _say_how_to_try(config, name, port)


def curl_line(url: str, model: str, *, keyed: bool) -> str:
    """One command that shows an answer and its headers."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a story about a brave fox."}],
        "temperature": 0,
        "max_tokens": 80,
    }
    headers = "-H 'Content-Type: application/json'"
    if keyed:
        headers += ' -H "Authorization: Bearer $KEY"'
    return f"curl -si {url}/v1/chat/completions {headers} -d {shlex.quote(json.dumps(body))}"
