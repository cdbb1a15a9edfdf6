"""`greenllm serve`: load with a spinner, print one line to try, serve."""

from __future__ import annotations

import importlib
import json
import logging
import os
from functools import partial

from rich.console import Console
from rich.logging import RichHandler

from greenllm.cli.clashes import find_clashes
from greenllm.config import ConfigError
from greenllm.energy.ladder import choose_meter, gpu_rungs
from greenllm.energy.meter import SensorError
from serving.config import ServeConfig

console = Console(stderr=True, highlight=False)
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def run(config: ServeConfig) -> None:
    """Serve until interrupted.

    Raises:
        GreenllmError: the server cannot start.
    """
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level="WARNING", handlers=[handler], format="%(message)s")
    # Threads that spin at barriers burn joules, and stall each other when a core is taken away.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not console.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for clash in find_clashes():
        console.print(f"[yellow]warning:[/] {clash}")
    try:
        # A server on the CPU does not pay for what others do on the GPUs.
        meter = choose_meter(config.meter, gpu=gpu_rungs if config.device != "cpu" else list)
        first = meter.read()
    except SensorError as error:
        raise ConfigError(f"--meter {config.meter}: {error}") from error
    with console.status("importing torch") as status:
        server = importlib.import_module("serving.server")
        transformers_logging = importlib.import_module("transformers.utils.logging")
        transformers_logging.disable_progress_bar()
        status.update(f"loading {config.model}")

        def on_ready(config: ServeConfig, parts: object, port: int) -> None:
            status.stop()
            announce(config, parts, port)

        server.serve(config, meter, first, on_ready)


def announce(config: ServeConfig, parts: object, port: int) -> None:
    """Say what is served, how it is metered, and how to try it."""
    engine = parts.engine  # type: ignore[attr-defined]
    info, meter = engine.info, engine.account.meter
    name = config.served_model_name or info.name
    size = f"{info.parameters / 1e6:.1f}M parameters, {info.weight_bytes / 1e6:.1f} MB"
    say = partial(console.print, soft_wrap=True)
    say(f"[green]{name}[/] ({size}, {info.quantization}, {info.dtype}, {info.device})")
    say(f"runner: {info.runner}, threads: {parts.threads}")  # type: ignore[attr-defined]
    say(f"speculation: {parts.drafting}")  # type: ignore[attr-defined]
    say(f"energy: {meter.method} ({'measured' if meter.measured else 'not measured'})")
    source = engine.policy.source
    if source is not None:
        value = source.intensity(0.0)
        year = f", {value.year}" if value.year else ""
        say(f"carbon: {value.g_per_kwh:g} g/kWh, {value.name} ({value.source}{year})")
    say(f"ledger: {parts.ledger.path}")  # type: ignore[attr-defined]
    if config.host not in LOOPBACK and not config.api_keys:
        say(f"[yellow]open to all who reach {config.host}[/], /metrics too: see --api-keys")
    say("\nTry it:\n")
    host = "localhost" if config.host in ("0.0.0.0", "127.0.0.1", "::") else config.host
    line = curl_line(f"http://{host}:{port}", name, with_key=bool(config.api_keys))
    say(line, markup=False)


def curl_line(url: str, model: str, *, with_key: bool = False) -> str:
    """One command that shows an answer and its headers; the key is taken from `$KEY`."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a story about a brave fox."}],
        "temperature": 0,
        "max_tokens": 80,
    }
    headers = "-H 'Content-Type: application/json'"
    headers += ' -H "Authorization: Bearer $KEY"' if with_key else ""
    return f"curl -si {url}/v1/chat/completions {headers} -d '{json.dumps(body)}'"
