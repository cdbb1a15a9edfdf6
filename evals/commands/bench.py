"""`greenllm bench serve`: load on a server, and back come rates, latencies and joules.

Contract: it sends to this machine unless another URL is given; what failed is listed with its
reason and counts for nothing. Exit code 1 if no request of a load succeeded, 2 if an option is
wrong or the server cannot be used at all. Warm-up requests have seeds of their own, and prompts
never repeat from one load to the next, so that no cache helps. The environment is not read:
`GREENLLM_MODEL` and its like are the server's.

Not covered: quality of answers; starting servers (`python -m evals.studies.peers` does).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

import typer
from rich.console import Console

from evals.load.client import LoadTarget, TargetError, first_model
from evals.load.config import BenchConfig
from evals.load.drive import Load, LoadResult, measure
from evals.load.figures import Spread
from evals.load.plan import even_shots, length_factor, read_trace, scale_trace
from evals.load.processes import listener
from greenllm.config import ConfigError
from greenllm.figures import UNKNOWN, make_console, make_table, number, print_table

LOOPBACK = ("127.0.0.1", "localhost", "::1")
APART = 1_000_000  # shots of one load are numbered this far from those of the next
RATES = ("load", "ok", "failed", "tok/s", "prompt tok/s", "tok/CPU-s", "peak MB", "J", "J/tok")
LATENCIES = ("load", "first token, ms", "per token after, ms", "end to end, ms")


def bench_serve(config: BenchConfig) -> None:
    """Send all loads and report.

    Raises:
        GreenllmError: an option is wrong, or the server cannot be reached.
    """
    loads = list(loads_of(config))
    console = make_console()
    results = asyncio.run(_measure(config, loads, Console(stderr=True)))
    _print(console, results)
    if config.json is not None:
        _write(config, results, config.json)
    if any(not result.summary.ok for result in results):
        raise typer.Exit(1)


def loads_of(config: BenchConfig) -> Iterator[Load]:
    """An open loop where there is a trace, else a closed loop per concurrency."""
    if config.trace is None:
        for i, level in enumerate(config.levels()):
            shots = even_shots(config.prompt_tokens, config.max_tokens, first=(i + 1) * APART)
            requests = None if config.duration_s else config.requests
            yield Load(f"{level} in flight", shots, level, requests, config.duration_s)
        return
    try:
        with config.trace.open(encoding="utf-8", newline="") as lines:
            shots_read = read_trace(lines, limit=config.limit)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--trace {config.trace}: {error}", "trace") from error
    scaled = scale_trace(shots_read, max_context=config.max_context, rate_scale=config.rate_scale)
    factor = length_factor(shots_read, config.max_context)
    yield Load(f"{config.trace.name}, lengths x {factor:.3g}", scaled)


async def _measure(config: BenchConfig, loads: list[Load], console: Console) -> list[LoadResult]:
    url = config.base_url
    listed = await first_model(url, config.api_key)
    target = LoadTarget(
        url=url,
        model=config.model or listed,
        api_key=config.api_key,
        chat=config.chat,
        vocabulary=config.vocabulary,
        seed=config.seed,
        timeout_s=config.timeout_s,
        fixed_length=not config.stop_at_eos,
    )
    pid = config.pid or _found_pid(url)
    results = []
    with console.status("warming up") as status:
        if config.warm_up:
            await _warm_up(target, config)
        for load in loads:
            status.update(load.name)
            results.append(await measure(target, load, pid))
    return results


async def _warm_up(target: LoadTarget, config: BenchConfig) -> None:
    shots = even_shots(config.prompt_tokens, config.max_tokens)
    load = Load("warm-up", shots, min(8, config.warm_up), config.warm_up)
    result = await measure(replace(target, seed=config.seed - 1), load, None)
    if not result.summary.ok:
        reasons = "; ".join(result.summary.failures)
        raise TargetError(f"no request of the warm-up succeeded: {reasons}")


def _found_pid(url: str) -> int | None:
    parts = urlsplit(url)
    if parts.hostname not in LOOPBACK:
        return None
    return listener(parts.port or (443 if parts.scheme == "https" else 80))


def _print(console: Console, results: list[LoadResult]) -> None:
    rates, latencies = make_table(RATES), make_table(LATENCIES)
    for result in results:
        summary = result.summary
        rates.add_row(*_row(result))
        spreads = (summary.ttft_s, summary.tpot_s, summary.end_to_end_s)
        latencies.add_row(result.name, *(_ms(spread) for spread in spreads))
    print_table(console, "Rates", rates)
    print_table(console, "Latencies: p50 / p90 / p99", latencies)
    _remark(console, results)


def _remark(console: Console, results: list[LoadResult]) -> None:
    """What failed, and what the figures rest on."""
    for result in results:
        for reason, count in result.summary.failures.items():
            console.print(f"{result.name}: {count} failed: {reason}", soft_wrap=True)
        if energy := result.summary.energy:
            console.print(f"{result.name}: joules by {energy.method}, {energy.answers} answers")
        if result.footprint is not None:
            seen = result.footprint
            memory = f"memory is {seen.memory_kind} of {seen.processes} processes"
            client = f"client {result.client_cpu_s:.2f} CPU-s"
            server = f"server {seen.cpu_s:.2f} CPU-s"
            console.print(f"{result.name}: process {seen.pid}, {memory}; {server}, {client}")


def _row(result: LoadResult) -> list[str]:
    summary, seen, energy = result.summary, result.footprint, result.summary.energy
    return [
        result.name,
        str(summary.ok),
        str(summary.failed),
        number(summary.tokens_per_s),
        number(summary.prompt_tokens_per_s),
        number(result.tokens_per_cpu_s),
        number(seen.peak_bytes / 1e6) if seen else UNKNOWN,
        number(energy.joules if energy else None),
        number(energy.joules_per_token if energy else None),
    ]


def _ms(spread: Spread | None) -> str:
    if spread is None:
        return UNKNOWN
    return " / ".join(number(1e3 * value) for value in (spread.p50, spread.p90, spread.p99))


def _write(config: BenchConfig, results: list[LoadResult], path: Path) -> None:
    options = {name: value for name, value in asdict(config).items() if name != "api_key"}
    text = json.dumps(
        {"options": options, "loads": [asdict(result) for result in results]},
        indent=2,
        default=str,
    )
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: {error}", "json") from error
