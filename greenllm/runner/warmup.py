"""Rehearsal before serving: batches of several sizes, run before the first request is billed.

It warms the kernels, and teaches the fit what a step, a row, a FLOP and a KV byte cost here.

What it costs is booked as `load`. It ends after `budget_s`, or after three rounds; the first
teaches nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from greenllm.core import Batch, Chunk, Request, SamplingParams, Sequence
from greenllm.energy.account import Account
from greenllm.runner.base import Runner

_DECODE = ((1, 8), (2, 8), (4, 16), (8, 8), (16, 16), (4, 128), (16, 64))
_PREFILL = (8, 32, 64, 128)
_ROUNDS = 3
_TRIAL = (4, 8, 1)
_TRIAL_RUNS = 3
_MIN_GAIN = 1.3


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


def choose_threads(
    runner: Runner,
    candidates: tuple[int, ...],
    use: Callable[[int], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Try thread counts, fewest first, on a small decode batch, and keep the best in use.

    More threads burn more joules for the same tokens, so they must be at least 1.3 times faster.
    """
    best, best_s = candidates[0], math.inf
    for threads in candidates:
        use(threads)
        runner.run(_batch(runner, *_TRIAL))
        started_s = clock()
        for _ in range(_TRIAL_RUNS):
            runner.run(_batch(runner, *_TRIAL))
        took_s = clock() - started_s
        if took_s * _MIN_GAIN < best_s:
            best, best_s = threads, took_s
    use(best)
    return best


def _batches(runner: Runner) -> list[Batch]:
    """Batches that fit the runner's context and cache."""
    limit = min(runner.info.context_length, runner.num_blocks * runner.block_size)
    decode = [_batch(runner, rows, length, 1) for rows, length in _DECODE if length < limit]
    prefill = [_batch(runner, 1, length, length) for length in _PREFILL if length < limit]
    return [batch for batch in decode + prefill if _num_blocks(batch) <= runner.num_blocks]


def _batch(runner: Runner, rows: int, length: int, num_tokens: int) -> Batch:
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
