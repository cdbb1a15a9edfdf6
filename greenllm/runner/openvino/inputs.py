"""A batch as arrays for graphs: the ragged layout and the rotary angles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from greenllm.core import Chunk

Arrays = dict[str, NDArray[np.generic]]


class Rotation:
    """Cosines and sines of positions; `frequencies` in radians per position.

    Those of the positions seen so far are kept.
    """

    def __init__(self, frequencies: Sequence[float]) -> None:
        self._frequencies = np.array(frequencies, np.float64)
        self._cosine = self._sine = np.zeros((0, 1, 1, 2 * len(frequencies)), np.float32)

    def of(self, positions: NDArray[np.integer], prefix: str = "") -> Arrays:
        """Graph inputs `cosine` and `sine`, [*positions, 1, 1, head_dim]."""
        if positions.max(initial=0) >= len(self._cosine):
            self._grow(int(positions.max()))
        return {f"{prefix}cosine": self._cosine[positions], f"{prefix}sine": self._sine[positions]}

    def _grow(self, longest: int) -> None:
        angles = np.arange(1 << (longest + 1).bit_length())[:, None] * self._frequencies
        self._cosine, self._sine = (
            np.tile(turn(angles).astype(np.float32), 2)[:, None, None] for turn in (np.cos, np.sin)
        )


def positions_of(chunks: Sequence[Chunk]) -> NDArray[np.integer]:
    """Positions of a step's tokens."""
    return np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks])


def step_arrays(chunks: Sequence[Chunk], block_size: int, more: int = 0) -> Arrays:
    """The ragged batch as int32 arrays; see `attention.StepInputs`.

    Blocks are those of the chunks' tokens and of `more` after them.
    """
    ids: list[int] = []
    blocks: list[int] = []
    begins, block_begins = [0], [0]
    for chunk in chunks:
        ids += chunk.token_ids
        blocks += chunk.seq.block_table[: -(-(chunk.end + more) // block_size)]
        begins.append(len(ids))
        block_begins.append(len(blocks))
    lists = {
        "ids": ids,
        "past_lens": [chunk.start for chunk in chunks],
        "subsequence_begins": begins,
        "block_indices": blocks,
        "block_indices_begins": block_begins,
    }
    arrays: Arrays = {name: np.array(values, np.int32) for name, values in lists.items()}
    arrays["max_context_len"] = np.array(max(chunk.end for chunk in chunks), np.int32)
    return arrays


def later_arrays(chunks: Sequence[Chunk], count: int, rotation: Rotation) -> Arrays:
    """Inputs of `count` further steps of one token for each chunk; see `unrolled`."""
    ends = np.array([chunk.end for chunk in chunks], np.int32)
    begins = np.arange(len(chunks) + 1, dtype=np.int32)
    positions = np.arange(count)[:, None] + ends
    return {
        "later_lens": ends,
        "later_begins": begins,
        **rotation.of(positions, "later_"),
    }
