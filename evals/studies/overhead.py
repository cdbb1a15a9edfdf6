"""What metering costs, and what HTTP costs: `python -m evals.studies.overhead`.

Arms of metering: the bare engine at a fixed batch, with the account, the receipts and the ledger,
and with none of them, interleaved, with nothing else running; and, as the difference drowns in a
noisy machine's noise, the share of the time that is spent in the account and the ledger, by
stopwatch. Arms of HTTP: the same number of requests sent to a real server with the same batch,
streamed and not, interleaved with the bare engine. Clients run in this process, on the same cores,
so the figure includes what they take.

Measure: tokens per second, and per CPU second of the process that runs the engine.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from evals.engines import Bench, load_bench
from evals.studies import study
from evals.studies.load import CHATS, Server, chat_body, serve, story_request
from evals.studies.ratios import Figures, medians, over
from greenllm.core import Request
from greenllm.energy.account.account import Account
from greenllm.energy.account.bill import TokenCounts
from greenllm.energy.ledger import Ledger
from greenllm.energy.meters.choose import open_meter
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.engine.native import NativeEngine
from greenllm.options import MeterOptions
from greenllm.runner.warmup import warm_up

STUDY = study.Study("overhead")
_SHARES = 5


class Unmetered(Account):
    """An account that does nothing: the engine without metering."""

    def open(self, request: Request) -> None:
        """Ignore."""

    def charge(self, *given: Any, **how: Any) -> None:
        """Ignore."""

    def finish(
        self,
        request_id: str,
        outcome: Outcome,
        counts: TokenCounts,
        *,
        mean_layers: float | None = None,
    ) -> None:
        """Ignore."""

    def settle(self) -> list[Receipt]:
        """No receipts."""
        return []


class Timed(Account):
    """An account with a stopwatch around everything the engine calls in a step."""

    spent_s = 0.0

    def charge(self, *given: Any, **how: Any) -> None:
        """Charge, timed."""
        started_s = time.perf_counter()
        super().charge(*given, **how)
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


@dataclass(frozen=True, slots=True)
class Load:
    """The work every arm gets: a batch, and as many requests again in the queue."""

    batch: int
    tokens: int

    @property
    def requests(self) -> int:
        """Requests of one run."""
        return 2 * self.batch

    def figures(self, wall_s: float, cpu_s: float) -> Figures:
        """Speed of one run."""
        tokens = self.requests * self.tokens
        return {"tokens_per_s": tokens / wall_s, "tokens_per_cpu_s": tokens / cpu_s}

    def bare(self, bench: Bench, account: Account, ledger: Ledger | None) -> Figures:
        """Run the engine in this process."""
        engine = bench.engine(account, self.batch)
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        for number in range(self.requests):
            name = f"r{started_s}-{number}"
            engine.add_request(story_request(bench.tokenizer, name, self.tokens))
        while engine.has_work:
            engine.step()
            _settle(engine, ledger)
        cpu_s = time.process_time() - started_cpu_s
        return self.figures(time.perf_counter() - started_s, cpu_s)

    def http(self, server: Server, *, stream: bool) -> Figures:
        """Send the requests to a server."""
        body = {**chat_body(server.model, self.tokens), "stream": stream}

        async def send() -> float:
            async with httpx.AsyncClient(timeout=120) as client:
                started_s = time.perf_counter()
                asked = (_ask(client, f"{server.url}{CHATS}", body) for _ in range(self.requests))
                await asyncio.gather(*asked)
                return time.perf_counter() - started_s

        before_s = server.cpu_s()
        wall_s = asyncio.run(send())
        return self.figures(wall_s, server.cpu_s() - before_s)


def _settle(engine: NativeEngine, ledger: Ledger | None) -> None:
    receipts = engine.settle()
    if receipts and ledger is not None:
        ledger.record("bench", receipts, engine.stats().totals)


async def _ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> None:
    async with client.stream("POST", url, json=body) as response:
        response.raise_for_status()
        async for _ in response.aiter_raw():
            pass


def ratios(found: Mapping[str, Sequence[Figures]], name: str) -> dict[str, dict[str, float]]:
    """What is compared with what."""
    beside = found["metered_beside_http"]
    return {
        "metered_over_unmetered": over(found["metered"], found["unmetered"], name),
        "http_over_metered": over(found["http"], beside, name),
        "http_stream_over_metered": over(found["http_stream"], beside, name),
    }


def main(
    rounds: study.Rounds = 40,
    batch: Annotated[int, typer.Option(help="Concurrent requests.")] = 8,
    tokens: study.Tokens = 64,
    threads: study.Threads = 1,
    model: study.Model = "bundled",
    meter: Annotated[str, typer.Option(help="As --meter of the server.")] = "modelled",
    name: study.Name = STUDY.name,
) -> None:
    """Measure the overhead of metering and of HTTP."""
    bench, load = load_bench(model, threads), Load(batch, tokens)
    options = ["--threads", str(threads), "--no-prefix-cache", "--max-num-seqs", str(batch)]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "bench.sqlite")
        ledger.open_session("bench", method="modelled", measured=False)
        account = bench.account(meter)
        unmetered = Unmetered(account.meter, bench.runner.shape, clock=time.monotonic)
        # Alone on the machine: nothing else differs between neighbours.
        arms = {
            "metered": lambda: load.bare(bench, account, ledger),
            "unmetered": lambda: load.bare(bench, unmetered, None),
        }
        found = study.interleave(lambda arm, _: arms[arm](), rounds, list(arms))
        shares = [
            metering_share(bench, ledger, meter, batch=batch, tokens=tokens) for _ in range(_SHARES)
        ]
        with serve(model, *options, "--meter", meter) as server:
            arms = {
                "metered_beside_http": lambda: load.bare(bench, account, ledger),
                "http": lambda: load.http(server, stream=False),
                "http_stream": lambda: load.http(server, stream=True),
            }
            half = max(1, rounds // 2)
            found |= study.interleave(lambda arm, _: arms[arm](), half, list(arms))
    speeds = {arm: medians(turns) for arm, turns in found.items()}
    measures = {"wall": "tokens_per_s", "cpu": "tokens_per_cpu_s"}
    about = {"batch": batch, "tokens": tokens, "threads": threads, "meter": account.meter.method}
    STUDY.report({
        **about,
        "rounds": rounds,
        **{name: {arm: speed[name] for arm, speed in speeds.items()} for name in measures.values()},
        "metering_share_of_time": statistics.median(shares),
        **{measure: ratios(found, name) for measure, name in measures.items()},
    }, name)  # fmt: skip


if __name__ == "__main__":
    STUDY.run(main)
