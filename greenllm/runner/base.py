"""The runner protocol: the only thing the engine knows about a model. No torch."""

from __future__ import annotations

from typing import Protocol

from greenllm.core import Batch, Sample
from greenllm.model.info import ModelInfo
from greenllm.shape import ModelShape


class Runner(Protocol):
    """Runs ragged batches over a paged KV cache it owns.

    The scheduler's block tables name blocks `0 .. num_blocks - 1` of `block_size` tokens.
    """

    @property
    def info(self) -> ModelInfo:
        """The model."""

    @property
    def shape(self) -> ModelShape:
        """What its tokens cost."""

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV cache."""

    @property
    def block_size(self) -> int:
        """Tokens in a block."""

    def run(self, batch: Batch) -> list[Sample]:
        """Compute every chunk, write its keys and values, and sample where the chunk asks for it.

        Returns one sample per chunk, in order.
        """
