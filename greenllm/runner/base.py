"""The runner protocol: the only thing the engine knows about a model. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from greenllm.core import Batch, Sample
from greenllm.model.info import ModelInfo
from greenllm.runner.threads import ThreadPlan
from greenllm.shape import ModelShape
from greenllm.speculation.drafter import Drafter

if TYPE_CHECKING:
    from greenllm.model.lora import LoraWeights


class AdapterSource(Protocol):
    """Where a runner finds the weights of the adapters in a batch."""

    def weights(self, digest: str) -> LoraWeights:
        """The weights of an adapter that a request in flight uses."""


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

    @property
    def lora_targets(self) -> Mapping[str, tuple[int, int]]:
        """Modules that adapters may change: path in the transformers model -> (in, out) features.

        Fused modules, such as Phi-3's `qkv_proj`, are targets under their own names.
        """

    def use_adapters(self, source: AdapterSource) -> None:
        """Say where weights come from, before the first batch with an adapter."""

    def prepare_adapter(self, digest: str) -> None:
        """Do what a step with an adapter would have to wait for; callable from any thread."""

    def use_threads(self, plan: ThreadPlan, *, trial: bool = False) -> None:
        """Say how many CPU threads run a step of each size; a trial keeps what others need."""

    def early_exit(self, layer: int) -> Drafter:
        """A drafter that asks the first `layer` layers and the head, on the same KV cache.

        Raises:
            LoadError: the model has no such layer, or cannot be left early.
        """

    def as_drafter(self) -> Drafter:
        """A drafter that asks the whole model, for a runner that drafts for another."""

    def prepare_check(self, num_tokens: int) -> None:
        """Do what the first check of so many draft tokens would wait for; from any thread."""

    def prepare_exit(self, layer: int) -> None:
        """Do what the first step that may end after `layer` layers would wait for; from any thread.

        Raises:
            LoadError: the model cannot be left there.
        """

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy blocks (from, to) in every layer, in order; see `core.Batch`."""

    def run(self, batch: Batch) -> list[Sample]:
        """Compute every chunk, write its keys and values, and sample where the chunk asks for it.

        Returns one sample per chunk, in order. The batch's copies have been made.
        """
