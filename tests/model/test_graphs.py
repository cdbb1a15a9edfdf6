"""Steps laid out in fixed shapes give the logits of the runner's own steps.

Recording and replaying them takes a CUDA device: see tests/gpu.
"""

from __future__ import annotations

import torch

from greenllm.core import Batch, Chunk, Request, SamplingParams, Sequence, sequences_of
from greenllm.model.options import BUNDLED_PATH
from greenllm.runner.graphs import MOST_TOKENS, ROWS, Size, forward, lay_out, size_of
from tests.model.driving import assemble

BLOCK = 8


def sequence(prompt: list[int], blocks: list[int]) -> Sequence:
    request = Request("r", (tuple(prompt),), SamplingParams(temperature=0), model="")
    (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=200)
    seq.block_table = blocks
    return seq


def test_the_smallest_size_is_taken() -> None:
    seqs = [sequence([5] * 70, list(range(9))), sequence([6] * 3, [20])]
    chunks = [Chunk(seqs[0], 69, 1, samples=True), Chunk(seqs[1], 0, 3, samples=True)]
    assert size_of(chunks, BLOCK) == Size(rows=4, blocks=16)
    assert size_of(chunks[1:], BLOCK) == Size(rows=4, blocks=8)


def test_long_chunks_and_large_steps_have_no_size() -> None:
    long = Chunk(sequence([5] * 40, list(range(5))), 0, MOST_TOKENS + 1, samples=True)
    one = Chunk(sequence([5], [0]), 0, 1, samples=True)
    assert size_of([one, long], BLOCK) is None
    assert size_of([one] * ROWS[-1], BLOCK) == Size(ROWS[-1], 8)
    assert size_of([one] * (ROWS[-1] + 1), BLOCK) is None
    assert size_of([], BLOCK) is None


def test_rows_that_are_left_over_touch_the_spare_block_only() -> None:
    chunk = Chunk(sequence([5, 6, 7], [3]), 1, 2, samples=True).with_draft((9,))
    rows = lay_out([chunk], Size(4, 8), BLOCK, spare_block=99).tolist()
    assert [row[:2] for row in rows] == [[6, 1], [7, 2], [9, 3], [0, 0]]
    assert [set(row[2:]) for row in rows] == [{3}, {3}, {3}, {99}]


@torch.inference_mode()
def test_logits_are_those_of_the_plain_step() -> None:
    """Of single tokens and of guesses, in sequences of different lengths, with rows left over."""
    runner, model, attention = assemble(BUNDLED_PATH, BLOCK)
    long, short = sequence(list(range(40, 61)), [4, 1, 7]), sequence([9, 8, 7], [2])
    for seq in (long, short):
        runner.run(Batch((Chunk(seq, 0, seq.prompt_len - 1, samples=False),)))
    chunks = [
        Chunk(short, 2, 1, samples=True),
        Chunk(long, 20, 1, samples=True).with_draft((50, 51)),
    ]
    plain = runner.logits(chunks, [range(1), range(3)])
    size = size_of(chunks, BLOCK)
    assert size == Size(4, 8)
    inputs = lay_out(chunks, size, BLOCK, spare_block=runner.num_blocks)
    found = forward(model, attention, inputs, BLOCK)
    torch.testing.assert_close(found[:4], plain, rtol=1e-4, atol=1e-4)
    wrong = inputs.clone()
    wrong[1, 1] += 1
    assert (forward(model, attention, wrong, BLOCK)[1] - plain[1]).abs().max() > 0.1
