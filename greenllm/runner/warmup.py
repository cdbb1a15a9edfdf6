"""Rehearsal before serving: batches of several sizes, run before the first request is billed.

It warms the kernels, and teaches the fit what a step, a row, a FLOP and a KV byte cost here.

What it costs is booked as `load`. It ends after `budget_s`, or after three rounds; the first
teaches nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from greenllm.core import Batch, Chunk, Request, SamplingParams, Sequence
from greenllm.energy.account.account import Account
from greenllm.runner.base import Runner
from greenllm.runner.threads import SIZES, ThreadPlan, ThreadPolicy, measure_plan

_DECODE = ((1, 8), (2, 8), (4, 16), (8, 8), (16, 16), (4, 128), (16, 64))
_PREFILL = (8, 32, 64, 128)
_ROUNDS = 3
_MOST_ROWS = 32
_THREAD_TRIALS_S = 8.0


def warm_up(
    runner: Runner,
    account: Account,
    *,
    budget_s: float = 3.0,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run the rehearsal; returns the number of batches the fit learnt from."""
    started_s = clock()
    learnt = 0
    for round_number in range(_ROUNDS):
        for batch in _batches(runner):
            if clock() - started_s > budget_s:
                return learnt
            if round_number == 0:
                runner.run(batch)
            else:
                learnt += account.rehearse(batch, runner.run)
    return learnt


def plan_threads(runner: Runner, setting: str, num_cpus: int) -> ThreadPlan:
    """Put `--threads` into effect: a number, or `auto` and `eco` by measurement."""
    if setting.isdecimal():
        plan = ThreadPlan.fixed(int(setting))
    else:
        batches = {size: _trial(runner, size) for size in SIZES}
        fitting = {s: batch for s, batch in batches.items() if _fits(batch, runner)}

        def step(size: int, threads: int) -> None:
            runner.use_threads(ThreadPlan.fixed(threads), trial=True)
            runner.run(fitting[size])

        candidates = tuple(dict.fromkeys((1, num_cpus)))
        policy: ThreadPolicy = "eco" if setting == "eco" else "auto"
        plan = ThreadPlan.fixed(1)
        if fitting:
            sizes = tuple(fitting)
            plan = measure_plan(step, candidates, sizes, policy, budget_s=_THREAD_TRIALS_S)
    runner.use_threads(plan)
    return plan


def _trial(runner: Runner, size: int) -> Batch:
    """A step of that many tokens: small ones decode, large ones are a prompt."""
    if size <= _MOST_ROWS:
        return step_of(runner, rows=size, length=8, num_tokens=1)
    return step_of(runner, rows=1, length=size, num_tokens=size)


def _fits(batch: Batch, runner: Runner) -> bool:
    longest = max(chunk.end for chunk in batch.chunks)
    return _num_blocks(batch) <= runner.num_blocks and longest < runner.info.context_length


def _batches(runner: Runner) -> list[Batch]:
    """Batches that fit the runner's context and cache."""
    limit = min(runner.info.context_length, runner.num_blocks * runner.block_size)
    shapes = [(rows, length, 1) for rows, length in _DECODE]
    shapes += [(1, length, length) for length in _PREFILL]
    batches = [
        step_of(runner, rows=rows, length=length, num_tokens=count)
        for rows, length, count in shapes
        if length < limit
    ]
    return [batch for batch in batches if _num_blocks(batch) <= runner.num_blocks]


def step_of(runner: Runner, *, rows: int, length: int, num_tokens: int) -> Batch:
    """`rows` sequences of `length` tokens, of which the last `num_tokens` run."""
    per_row = -(-length // runner.block_size)
    chunks = []
    for row in range(rows):
        seq = _sequence(row, length)
        seq.block_table = list(range(row * per_row, (row + 1) * per_row))
        chunks.append(Chunk(seq, length - num_tokens, num_tokens, samples=True))
    return Batch(tuple(chunks))


def _sequence(row: int, length: int) -> Sequence:
    prompt = tuple([0] * max(1, length - 1))
    request = Request(f"warm-up-{row}", (prompt,), SamplingParams(temperature=0), model="")
    return Sequence(
        request=request,
        index=0,
        token_ids=[0] * length,
        prompt_len=len(prompt),
        seed=0,
        eos_token_ids=frozenset(),
        max_len=length + 1,
    )


def _num_blocks(batch: Batch) -> int:
    return 1 + max(max(chunk.seq.block_table) for chunk in batch.chunks)
