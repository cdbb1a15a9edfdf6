"""What guessing would bring at a given acceptance: `python -m evals.studies.oracle --model FOLDER`.

Random weights foresee nothing, so the early exit's guesses are computed, at their full cost, and
then replaced by an oracle's: the token the model will choose, or, with the chance that the wanted
acceptance leaves, another one. Speed and joules are measured in this process, on the real engine,
at batch 1, and set against

    tokens per cycle / (guesses * exit share + check)

where tokens per cycle is (1 - a^(k+1)) / (1 - a), the exit share is the parameters read for a guess
over those read for a token (layers and head), and the check of k guesses is a measured step of
1 + k tokens over a step of one.

Not covered: HTTP, batches, the acceptance itself.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evals.entry import finish
from evals.lab import Bench, load_bench, save
from evals.studies.ratios import paired_ratio
from greenllm.core import Chunk, DraftPass, Request, SamplingParams, Speculation
from greenllm.runner.warmup import step_of
from greenllm.shape import ModelShape
from greenllm.speculation.drafter import Drafter
from greenllm.speculation.speculator import Speculator

console = Console(stderr=True)
ACCEPTANCES = (0.6, 0.7, 0.8, 0.9)
PROMPT_TOKENS = 32
TOKENS = 96
_CHECK_RUNS = 41


@dataclass(slots=True)
class Oracle:
    """Pays for the guesses of `inner` and gives others: right with a chance of `acceptance`."""

    inner: Drafter
    answers: Mapping[str, Sequence[int]]
    acceptance: float
    source: random.Random

    @property
    def shape(self) -> ModelShape | None:
        """What a guess costs."""
        return self.inner.shape

    @property
    def passes(self) -> Sequence[DraftPass]:
        """What guesses took."""
        return self.inner.passes

    def prepare(self, num_tokens: int) -> None:
        """See `Drafter`."""
        self.inner.prepare(num_tokens)

    def draft(self, chunks: Sequence[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        """As many guesses as the real drafter made; others than its own, so it must not check."""
        counts = [len(guesses) for guesses in self.inner.draft(chunks)]
        return [self._guess(*pair) for pair in zip(chunks, counts, strict=True)]

    def _guess(self, chunk: Chunk, count: int) -> tuple[int, ...]:
        seq = chunk.seq
        coming = self.answers[seq.request.request_id][seq.num_generated :][:count]
        return tuple(
            token if self.source.random() < self.acceptance else (token + 1) % 256
            for token in coming
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over the requests, one at a time."""

    wall_s: float
    cpu_s: float
    active_j: float
    tokens: int
    accepted: int
    answers: dict[str, list[int]]


def requests(count: int, tokens: int, seed: int) -> list[Request]:
    """Random prompts, greedy, of a fixed length."""
    source = random.Random(seed)
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return [
        Request(
            f"oracle-{seed}-{number}",
            (tuple(source.randrange(10, 400) for _ in range(PROMPT_TOKENS)),),
            params,
            model="bench",
        )
        for number in range(count)
    ]


def run(bench: Bench, asked: Sequence[Request], speculator: Speculator | None) -> Run:
    """Answer the requests one by one; joules are those of the receipts."""
    account = bench.account()
    engine = bench.engine(account, batch=1, speculator=speculator)
    answers: dict[str, list[int]] = {request.request_id: [] for request in asked}
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for request in asked:
        engine.add_request(request)
        while engine.has_work:
            for token in engine.step():
                if token.token_id is not None:
                    answers[token.request_id].append(token.token_id)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    receipts = engine.drain()
    return Run(
        wall_s,
        cpu_s,
        sum(receipt.active_j or 0.0 for receipt in receipts),
        sum(map(len, answers.values())),
        sum(receipt.accepted_tokens for receipt in receipts),
        answers,
    )


def check_cost(bench: Bench, num_tokens: int) -> float:
    """A step of 1 + `num_tokens` tokens of one sequence over a step of one, medians."""

    def median_s(count: int) -> float:
        batch = step_of(bench.runner, rows=1, length=96, num_tokens=count)
        times: list[float] = []
        for _ in range(_CHECK_RUNS):
            started_s = time.perf_counter()
            bench.runner.run(batch)
            times.append(time.perf_counter() - started_s)
        return statistics.median(times[1:])

    return median_s(1 + num_tokens) / median_s(1)


def expected(acceptance: float, num_tokens: int, share: float, check: float) -> float:
    """The cost model's speed over plain decoding."""
    per_cycle = (1 - acceptance ** (num_tokens + 1)) / (1 - acceptance)
    return per_cycle / (num_tokens * share + check)


def main(
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")],
    exit_layer: Annotated[int, typer.Option(help="Layers that guess.")],
    quantize: Annotated[str, typer.Option(help="none, int8 or int4.")] = "int8",
    dtype: Annotated[str, typer.Option(help="Arithmetic.")] = "float32",
    threads: Annotated[int, typer.Option(help="Threads of every step.")] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds of all acceptances.")] = 5,
    num_tokens: Annotated[int, typer.Option(help="Guesses per step.")] = 4,
    count: Annotated[int, typer.Option(help="Answers per round.")] = 2,
    name: Annotated[str, typer.Option(help="Name of the result.")] = "oracle",
) -> None:
    """Measure guessing at forced acceptances, interleaved with plain decoding."""
    bench = load_bench(model, threads, quantize=quantize, dtype=dtype)
    drafter = bench.runner.early_exit(exit_layer)
    drafter.prepare(num_tokens)
    if drafter.shape is None:
        raise typer.BadParameter("this drafter asks no model", param_hint="--exit-layer")
    share = drafter.shape.num_parameters / bench.runner.shape.num_parameters
    check = check_cost(bench, num_tokens)
    plain: list[Run] = []
    guessed: dict[float, list[Run]] = {a: [] for a in ACCEPTANCES}
    for number in range(-1, rounds):
        asked = requests(count, TOKENS, number)
        base = run(bench, asked, None)
        for acceptance, runs in guessed.items():
            oracle = Oracle(drafter, base.answers, acceptance, random.Random(number))
            choice = Speculation("early_exit", num_tokens)
            found = run(bench, asked, Speculator({"early_exit": oracle}, choice))
            if number >= 0:
                runs.append(found)
        plain += [base] if number >= 0 else []
        console.print(f"round {number + 1}/{rounds}")
    figures = {
        "model": Path(model).name,
        "quantize": quantize,
        "dtype": dtype,
        "threads": threads,
        "exit_layer": exit_layer,
        "num_tokens": num_tokens,
        "exit_share": share,
        "check": check,
        "plain_tokens_per_s": statistics.median(r.tokens / r.wall_s for r in plain),
        "plain_tokens_per_cpu_s": statistics.median(r.tokens / r.cpu_s for r in plain),
        "acceptances": {
            str(a): _summary(a, runs, plain, expected(a, num_tokens, share, check))
            for a, runs in guessed.items()
        },
    }
    console.print_json(data=figures)
    console.print(f"written to {save(name, figures, module='oracle')}")


def _summary(
    acceptance: float, runs: Sequence[Run], plain: Sequence[Run], model: float
) -> dict[str, Any]:
    per_step = sum(r.tokens for r in runs) / sum(r.tokens - r.accepted for r in runs)
    speed = paired_ratio([r.tokens / r.wall_s for r in runs], [r.tokens / r.wall_s for r in plain])
    pairs = zip(runs, plain, strict=True)
    return {
        "forced_acceptance": acceptance,
        "tokens_per_s": statistics.median(r.tokens / r.wall_s for r in runs),
        "tokens_per_cpu_s": statistics.median(r.tokens / r.cpu_s for r in runs),
        "tokens_per_step": per_step,
        "speed_over_plain": speed,
        "cycle_over_plain_step": per_step / speed["median"],
        "cost_model": model,
        "measured_over_model": speed["median"] / model,
        "joules_over_plain": paired_ratio(
            [r.active_j / r.tokens for r in runs], [r.active_j / r.tokens for r in plain]
        ),
        "answers_that_differ": sum(
            one.answers[key] != other.answers[key] for one, other in pairs for key in one.answers
        ),
    }


if __name__ == "__main__":
    finish("evals.studies.oracle", lambda: typer.run(main))
