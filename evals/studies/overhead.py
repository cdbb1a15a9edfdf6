"""What metering costs, and what HTTP costs: `python -m evals.studies.overhead`.

Metering: the bare engine at a fixed batch, with the account, the receipts and the ledger, and with
none of them, interleaved, with nothing else running; and, as the difference drowns in a noisy
machine's noise, the share of the time that is spent in the account and the ledger, by stopwatch.

HTTP: the same number of requests sent to a real server with the same batch, streamed and not,
interleaved with the bare engine. Clients run in this process, on the same cores, so the figure
includes what they take. In tokens per second, and in tokens per CPU second of the process that runs
the engine.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Unpack

import httpx
import typer
from rich.console import Console

from evals.entry import finish
from evals.lab import (
    Bench,
    chat_body,
    cpu_seconds,
    interleave,
    load_bench,
    running_server,
    save,
    story_request,
)
from evals.studies.ratios import paired_ratio
from greenllm.core import Batch, Request, Sample
from greenllm.energy.account.account import Account
from greenllm.energy.account.bill import Counts
from greenllm.energy.ledger import Ledger
from greenllm.energy.meters.choose import open_meter
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.engine.native import NativeEngine
from greenllm.options import MeterOptions
from greenllm.runner.warmup import warm_up

console = Console()


class Unmetered(Account):
    """An account that does nothing: the engine without metering."""

    def open(self, request: Request) -> None:
        """Ignore."""

    def charge(self, batch: Batch, duration_s: float, samples: Sequence[Sample] = ()) -> None:
        """Ignore."""

    def finish(self, request_id: str, outcome: Outcome, **counts: Unpack[Counts]) -> None:
        """Ignore."""

    def settle(self) -> list[Receipt]:
        """No receipts."""
        return []


class Timed(Account):
    """An account with a stopwatch around everything the engine calls in a step."""

    spent_s = 0.0

    def charge(self, batch: Batch, duration_s: float, samples: Sequence[Sample] = ()) -> None:
        """Charge, timed."""
        started_s = time.perf_counter()
        super().charge(batch, duration_s, samples)
        self.spent_s += time.perf_counter() - started_s


def metering_share(bench: Bench, ledger: Ledger, meter: str, *, batch: int, tokens: int) -> float:
    """Share of the wall time of a run that goes to charging, settling and recording."""
    opened, _ = open_meter(MeterOptions(meter=meter))
    account = Timed(opened, bench.runner.shape, clock=time.monotonic)
    warm_up(bench.runner, account)
    account.start_serving()
    engine = bench.engine(account, batch)
    account.spent_s = 0.0
    started_s = time.perf_counter()
    for number in range(8 * batch):
        engine.add_request(story_request(bench.tokenizer, f"t{started_s}-{number}", tokens))
    while engine.has_work:
        engine.step()
        before_s = time.perf_counter()
        _settle(engine, ledger)
        account.spent_s += time.perf_counter() - before_s
    return account.spent_s / (time.perf_counter() - started_s)


@dataclass(slots=True)
class Load:
    """The work every arm gets: a batch, and as many requests again in the queue."""

    batch: int
    tokens: int
    per_cpu_s: dict[str, list[float]] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """Requests of one run."""
        return 2 * self.batch

    def note(self, arm: str, cpu_s: float) -> None:
        """Keep the tokens per CPU second of a run."""
        self.per_cpu_s.setdefault(arm, []).append(self.requests * self.tokens / cpu_s)

    def bare(
        self, arm: str, bench: Bench, account: Account, ledger: Ledger | None
    ) -> Callable[[], float]:
        """An arm that runs the engine in this process; returns tokens per second."""

        def run() -> float:
            engine = bench.engine(account, self.batch)
            started_s, started_cpu_s = time.perf_counter(), time.process_time()
            for number in range(self.requests):
                name = f"r{started_s}-{number}"
                engine.add_request(story_request(bench.tokenizer, name, self.tokens))
            while engine.has_work:
                engine.step()
                _settle(engine, ledger)
            self.note(arm, time.process_time() - started_cpu_s)
            return self.requests * self.tokens / (time.perf_counter() - started_s)

        return run

    def http(
        self, arm: str, server: tuple[str, int], model: str, *, stream: bool
    ) -> Callable[[], float]:
        """An arm that sends the requests to a server; returns tokens per second."""
        url, pid = server
        body = chat_body(Path(model).name, self.tokens, stream=stream)

        async def send() -> float:
            async with httpx.AsyncClient(timeout=120) as client:
                started_s = time.perf_counter()
                clients = (_client(client, url, body, stream=stream) for _ in range(self.requests))
                await asyncio.gather(*clients)
                return self.requests * self.tokens / (time.perf_counter() - started_s)

        def run() -> float:
            before_s = cpu_seconds(pid)
            rate = asyncio.run(send())
            self.note(arm, cpu_seconds(pid) - before_s)
            return rate

        return run


def _settle(engine: NativeEngine, ledger: Ledger | None) -> None:
    receipts = engine.settle()
    if receipts and ledger is not None:
        ledger.record("bench", receipts, engine.stats().totals)


async def _client(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], *, stream: bool
) -> None:
    if not stream:
        (await client.post(f"{url}/v1/chat/completions", json=body)).raise_for_status()
        return
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for _ in response.aiter_raw():
            pass


def _ratios(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """What is compared with what."""
    return {
        "metered_over_unmetered": paired_ratio(rates["metered"], rates["unmetered"]),
        "http_over_metered": paired_ratio(rates["http"], rates["metered_beside_http"]),
        "http_stream_over_metered": paired_ratio(
            rates["http_stream"], rates["metered_beside_http"]
        ),
    }


def _bare_rates(
    load: Load, bench: Bench, account: Account, ledger: Ledger, rounds: int
) -> dict[str, list[float]]:
    """With and without metering, alone on the machine: nothing else differs between neighbours."""
    unmetered = Unmetered(account.meter, bench.runner.shape, clock=time.monotonic)
    arms = {
        "metered": load.bare("metered", bench, account, ledger),
        "unmetered": load.bare("unmetered", bench, unmetered, None),
    }
    return interleave(arms, rounds, progress=console.print)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds per arm.")] = 40,
    batch: Annotated[int, typer.Option(help="Concurrent requests.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads of the model.")] = 1,
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
    meter: Annotated[str, typer.Option(help="As --meter of the server.")] = "modelled",
    name: Annotated[str, typer.Option(help="Name of the result.")] = "overhead",
) -> None:
    """Measure the overhead of metering and of HTTP."""
    bench, load = load_bench(model, threads), Load(batch, tokens)
    options = ["--threads", str(threads), "--no-prefix-cache", "--max-num-seqs", str(batch)]
    options += ["--meter", meter]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "bench.sqlite")
        ledger.open_session("bench", method="modelled", measured=False)
        account = bench.account(meter)
        rates = _bare_rates(load, bench, account, ledger, rounds)
        shares = [
            metering_share(bench, ledger, meter, batch=batch, tokens=tokens) for _ in range(5)
        ]
        with running_server(model, Path(folder), *options) as server:
            beside = "metered_beside_http"
            arms = {
                beside: load.bare(beside, bench, account, ledger),
                "http": load.http("http", server, model, stream=False),
                "http_stream": load.http("http_stream", server, model, stream=True),
            }
            rates |= interleave(arms, max(1, rounds // 2), progress=console.print)
    figures = {
        "batch": batch,
        "tokens": tokens,
        "threads": threads,
        "meter": account.meter.method,
        "rounds": rounds,
        "tokens_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "tokens_per_cpu_s": {n: statistics.median(v) for n, v in load.per_cpu_s.items()},
        "metering_share_of_time": statistics.median(shares),
        "wall": _ratios(rates),
        "cpu": _ratios(load.per_cpu_s),
    }
    console.print_json(data=figures)
    console.print(f"written to {save(name, figures, module='overhead')}")


if __name__ == "__main__":
    finish("evals.studies.overhead", lambda: typer.run(main))
