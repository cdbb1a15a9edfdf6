"""What draft tokens bring at an acceptance: `python -m evals.studies.oracle --model FOLDER`.

Question: does the cost model of drafting hold? Arms: plain decoding, and an early exit at several
acceptances. Random weights foresee nothing, so the exit's draft tokens are computed, at their full
cost, and then replaced by an oracle's: the token the model will choose, or, with the chance that
the wanted acceptance leaves, another one. Measure: speed and joules in this process, on the real
engine, at batch 1, set against

    tokens per cycle / (draft tokens * exit share + check)

where tokens per cycle is (1 - a^(k+1)) / (1 - a), the exit share is the parameters read for a draft
token over those read for a token (layers and head), and the check of k draft tokens is a measured
step of 1 + k tokens over a step of one.

Not covered: HTTP, batches, the acceptance itself.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from evals.engines import Bench, load_bench
from evals.studies import study
from evals.studies.load import random_prompt
from evals.studies.ratios import Figures, column, medians, over
from greenllm.core import Chunk, DraftPass, Request, SamplingParams, Speculation
from greenllm.model.options import own_name
from greenllm.runner.warmup import step_of
from greenllm.shape import ModelShape
from greenllm.speculation.drafter import Drafter
from greenllm.speculation.speculator import Speculator

STUDY = study.Study("oracle")
_PLAIN = 0.0  # as if it were an acceptance
ACCEPTANCES = (0.6, 0.7, 0.8, 0.9)
PROMPT_TOKENS = 32
TOKENS = 96
_CHECK_RUNS = 41


@dataclass(slots=True)
class Oracle:
    """Pays for the draft tokens of `inner` and gives others, right by the `acceptance`."""

    inner: Drafter
    answers: Mapping[str, Sequence[int]]
    acceptance: float
    source: random.Random

    @property
    def shape(self) -> ModelShape | None:
        """What a draft token costs."""
        return self.inner.shape

    @property
    def passes(self) -> Sequence[DraftPass]:
        """What draft tokens took."""
        return self.inner.passes

    def prepare(self, num_tokens: int) -> None:
        """See `Drafter`."""
        self.inner.prepare(num_tokens)

    def draft(self, chunks: Sequence[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        """As many as the real drafter made; others than its own, so it must not check."""
        counts = [len(tokens) for tokens in self.inner.draft(chunks)]
        return [self._draft(*pair) for pair in zip(chunks, counts, strict=True)]

    def _draft(self, chunk: Chunk, count: int) -> tuple[int, ...]:
        seq = chunk.seq
        coming = self.answers[seq.request.request_id][seq.num_generated :][:count]
        return tuple(
            token if self.source.random() < self.acceptance else (token + 1) % 256
            for token in coming
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over the requests, one at a time."""

    figures: Figures
    answers: Mapping[str, Sequence[int]]


def requests(count: int, tokens: int, seed: int) -> list[Request]:
    """Random prompts, greedy, of a fixed length."""
    source = random.Random(seed)
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return [
        Request(
            f"oracle-{seed}-{number}",
            (tuple(random_prompt(PROMPT_TOKENS, source)),),
            params,
            model="bench",
        )
        for number in range(count)
    ]


def run(bench: Bench, asked: Sequence[Request], speculator: Speculator | None) -> Run:
    """Answer the requests one by one; joules are those of the receipts."""
    engine = bench.engine(bench.account(), batch=1, speculator=speculator)
    answers: dict[str, list[int]] = {request.request_id: [] for request in asked}
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for request in asked:
        engine.add_request(request)
        while engine.has_work:
            for token in engine.step():
                if token.token_id is not None:
                    answers[token.request_id].append(token.token_id)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    receipts, tokens = engine.drain(), sum(map(len, answers.values()))
    figures = {
        "tokens_per_s": tokens / wall_s,
        "tokens_per_cpu_s": tokens / cpu_s,
        "joules_per_token": sum(receipt.active_j or 0.0 for receipt in receipts) / tokens,
        "tokens": tokens,
        "steps": tokens - sum(receipt.accepted_tokens for receipt in receipts),
    }
    return Run(figures, answers)


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
    model: study.Model,
    exit_layer: Annotated[int, typer.Option(help="Layers that draft.")],
    quantize: Annotated[str, typer.Option(help="none, int8 or int4.")] = "int8",
    dtype: Annotated[str, typer.Option(help="Arithmetic.")] = "float32",
    threads: study.Threads = 2,
    rounds: study.Rounds = 5,
    num_tokens: Annotated[int, typer.Option(help="Draft tokens per step.")] = 4,
    count: Annotated[int, typer.Option(help="Answers per round.")] = 2,
    name: study.Name = STUDY.name,
) -> None:
    """Measure draft tokens at forced acceptances, interleaved with plain decoding."""
    bench = load_bench(model, threads, quantize=quantize, dtype=dtype)
    drafter = bench.runner.early_exit(exit_layer)
    drafter.prepare(num_tokens)
    if drafter.shape is None:
        raise typer.BadParameter("this drafter asks no model", param_hint="--exit-layer")
    share = drafter.shape.num_parameters / bench.runner.shape.num_parameters
    check = check_cost(bench, num_tokens)
    answers: dict[str, Sequence[int]] = {}

    def measure(acceptance: float, number: int) -> Run:
        asked = requests(count, TOKENS, number)
        if acceptance == _PLAIN:
            plain = run(bench, asked, None)
            answers.update(plain.answers)
            return plain
        oracle = Oracle(drafter, answers, acceptance, random.Random(number))
        choice = Speculation("early_exit", num_tokens)
        return run(bench, asked, Speculator({"early_exit": oracle}, choice))

    # Plain decoding comes first in every round, as the oracle knows its answers.
    found = study.interleave(measure, rounds, [_PLAIN], ACCEPTANCES, warm_up=True)
    plain = found.pop(_PLAIN)
    speeds = medians([run.figures for run in plain], "tokens_per_s", "tokens_per_cpu_s")
    STUDY.report({
        "model": own_name(model),
        "quantize": quantize,
        "dtype": dtype,
        "threads": threads,
        "exit_layer": exit_layer,
        "num_tokens": num_tokens,
        "exit_share": share,
        "check": check,
        **{f"plain_{name}": speed for name, speed in speeds.items()},
        "acceptances": {
            str(a): {"forced_acceptance": a}
            | summary(runs, plain, expected(a, num_tokens, share, check))
            for a, runs in found.items()
        },
    }, name)  # fmt: skip


def summary(runs: Sequence[Run], plain: Sequence[Run], model: float) -> dict[str, Any]:
    """An acceptance beside plain decoding; `model` is the cost model's speed."""
    figures, base = ([run.figures for run in arm] for arm in (runs, plain))
    per_step = sum(column(figures, "tokens")) / sum(column(figures, "steps"))
    speed = over(figures, base, "tokens_per_s")
    return {
        **medians(figures, "tokens_per_s", "tokens_per_cpu_s"),
        "tokens_per_step": per_step,
        "speed_over_plain": speed,
        "cycle_over_plain_step": per_step / speed["median"],
        "cost_model": model,
        "measured_over_model": speed["median"] / model,
        "joules_over_plain": over(figures, base, "joules_per_token"),
        "answers_that_differ": sum(
            one.answers[key] != other.answers[key]
            for one, other in zip(runs, plain, strict=True)
            for key in one.answers
        ),
    }


if __name__ == "__main__":
    STUDY.run(main)
