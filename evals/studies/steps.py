"""How long a decoding step takes on a GPU: `python -m evals.studies.steps`.

Question: what does replaying a step save over launching it? Arms: the torch runner alone in this
process, without an engine, kernel by kernel, and recorded as a CUDA graph. Measure: sequences of
one length, all of them decoding, the same step again and again, choosing the token included. The
first step at a size, which records it, is beside it.

Not covered: joules (see `evals.studies.gpu`), prompts.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import torch
import typer

from evals.entry import BenchError
from evals.servers import require_model
from evals.studies import study
from evals.studies.gpu import board
from greenllm.core import Batch, Chunk, Request, SamplingParams, Sequence, sequences_of
from greenllm.model.options import LoadOptions, own_name
from greenllm.runner.torch import TorchRunner, load_torch_runner

STUDY = study.Study("steps")
BLOCK = 16
PROMPT_TOKENS = 64


def decoding(runner: TorchRunner, size: int) -> Batch:
    """So many sequences, their prompts computed, about to make a token each."""
    prompt = tuple(range(20, 20 + PROMPT_TOKENS))
    request = Request("steps", (prompt,), SamplingParams(temperature=0), model="")
    blocks = PROMPT_TOKENS // BLOCK + 1
    found: list[Sequence] = []
    for number in range(size):
        (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=2 * PROMPT_TOKENS)
        seq.block_table = list(range(number * blocks, (number + 1) * blocks))
        runner.run(Batch((Chunk(seq, 0, PROMPT_TOKENS - 1, samples=False),)))
        found.append(seq)
    return Batch(tuple(Chunk(seq, PROMPT_TOKENS - 1, 1, samples=True) for seq in found))


def timed(runner: TorchRunner, batch: Batch, steps: int) -> dict[str, float]:
    """The first step, and the median of so many more."""
    times: list[float] = []
    for _ in range(steps + 1):
        began_s = time.perf_counter()
        runner.run(batch)
        times.append(time.perf_counter() - began_s)
    return {"first_ms": 1e3 * times[0], "step_ms": 1e3 * statistics.median(times[1:])}


def main(
    model: study.Model = "bundled",
    batches: study.Batches = "1,8,32,128",
    steps: Annotated[int, typer.Option(help="Steps of each.")] = 30,
    name: study.Name = STUDY.name,
) -> None:
    """Time steps, launched and replayed."""
    require_model(model)
    if not torch.cuda.is_available():
        raise BenchError("steps are replayed on CUDA devices only, and there is none")
    sizes = study.split_numbers(batches, "--batches")
    found: dict[str, Any] = {}
    for way in ("launched", "replayed"):
        runner = load_torch_runner(
            model, LoadOptions(device="cuda"), block_size=BLOCK, kv_cache_bytes=2**31,
            max_num_seqs=max(sizes), eager=way == "launched",
        )  # fmt: skip
        found[way] = {str(size): timed(runner, decoding(runner, size), steps) for size in sizes}
        study.console.print(f"{way}: {found[way]}")
    STUDY.report({"model": own_name(model), "board": board(), "ways": found}, name)


if __name__ == "__main__":
    STUDY.run(main)
