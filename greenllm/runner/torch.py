"""The torch runner: any transformers decoder, driven directly, one packed row per step.

Contract: see `base.Runner`. Logits are computed only for rows that are sampled or scored. Greedy
tokens equal those of transformers' `generate` up to rounding between kernels (tested).

Early exits run the first layers of the same modules, step by step. On one CUDA device short steps
are replayed (see `graphs`).

Not covered: several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from greenllm.core import (
    Batch,
    Chunk,
    GreenllmError,
    Request,
    Sample,
    SamplingParams,
    sequences_of,
)
from greenllm.exits import EXIT_RUN
from greenllm.model.info import LoadError, ModelInfo
from greenllm.model.loader import LoadedModel, load_model
from greenllm.model.options import LoadOptions
from greenllm.runner.attention import (
    PagedAttention,
    hidden_window,
    make_plan,
    order_chunks,
)
from greenllm.runner.base import AdapterSource
from greenllm.runner.early_exit import first_layers
from greenllm.runner.exiting import LikelyToken, exit_layer, run_leaving_early
from greenllm.runner.graphs import RecordedSteps
from greenllm.runner.lora import LoraBank
from greenllm.runner.readout import packed_rows, read_out, wanted_rows
from greenllm.runner.stepwise import StepByStep, plain
from greenllm.runner.threads import ThreadPlan
from greenllm.shape import ModelShape


class TorchRunner:
    """Owns the model and the KV cache."""

    def __init__(
        self,
        loaded: LoadedModel,
        attention: PagedAttention,
        *,
        block_size: int,
        kv_cache_bytes: int,
        max_num_seqs: int,
        num_blocks: int | None = None,
        eager: bool = False,
    ) -> None:
        self.block_size = block_size
        self._model = loaded.model
        self._attention = attention
        self._bank = LoraBank(loaded.model)
        self._plan = ThreadPlan.fixed(torch.get_num_threads())
        self._exits: dict[int, PreTrainedModel] = {}
        self._device = loaded.model.get_input_embeddings().weight.device
        self.prompts_side_by_side = self._device.type == "cuda"
        self._probe(loaded)
        self.lora_targets: Mapping[str, tuple[int, int]] = self._bank.targets
        kv_bytes = sum(layer.bytes_per_token for layer in attention.layers.values())
        self.shape: ModelShape = replace(loaded.shape, kv_bytes_per_token=kv_bytes)
        wanted = kv_cache_bytes // (kv_bytes * block_size)
        useful = max_num_seqs * -(-loaded.info.context_length // block_size)
        self.num_blocks = num_blocks or min(wanted, useful)
        context = min(loaded.info.context_length, self.num_blocks * block_size)
        if context < 2 * block_size:
            raise LoadError(
                f"a context of {context} tokens is too small: raise --kv-cache-gb or --max-context"
            )
        window = hidden_window(loaded.model.config.get_text_config(), attention.layers)
        if window is not None and window < context:
            raise LoadError(
                f"cannot run {loaded.info.architecture}: it does not pass its attention window to"
                f" the attention function; set --max-context {window} or less"
            )
        self.info: ModelInfo = replace(loaded.info, context_length=context)
        # One block more than sequences use, for probes.
        attention.allocate((self.num_blocks + 1) * block_size)
        self._recorded = (
            RecordedSteps(attention, block_size, self.num_blocks)
            if not eager and self._can_record(loaded)
            else None
        )

    def _can_record(self, loaded: LoadedModel) -> bool:
        """On one CUDA device; LLM.int8() asks for outliers in mid-step."""
        devices = {layer.device for layer in self._attention.layers.values()} | {self._device}
        on_one = len(devices) == 1 and self._device.type == "cuda"
        return on_one and loaded.info.quantization != "int8"

    @torch.inference_mode()
    def _probe(self, loaded: LoadedModel) -> None:
        """Run two tokens to see every attention layer; a model that hides them is refused."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=self._device)
        positions = torch.arange(2, device=self._device)[None]
        try:
            self._bank.observe(
                lambda: self._model(input_ids=ids, position_ids=positions, use_cache=False), 2
            )
        except (GreenllmError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise LoadError(f"cannot run {loaded.info.architecture}: {reason}") from error
        if len(self._attention.layers) != max(1, loaded.shape.num_layers):
            raise LoadError(
                f"cannot run {loaded.info.architecture}: {len(self._attention.layers)} of"
                f" {loaded.shape.num_layers} layers use transformers' attention interface"
            )

    def use_adapters(self, source: AdapterSource) -> None:
        """Say where weights come from; see `base.Runner`."""
        self._bank.use(source)

    def prepare_adapter(self, digest: str) -> None:
        """Nothing takes long enough to be done ahead; see `base.Runner`."""

    def use_threads(self, plan: ThreadPlan, *, trial: bool = False) -> None:
        """Set how many threads run a step; see `base.Runner`."""
        self._plan = plan

    def early_exit(self, layer: int) -> StepByStep:
        """A drafter on the first layers; see `base.Runner`."""
        exiting = partial(self._run, self._first(layer))
        self._probe_exit(exiting)
        return StepByStep(exiting, self.shape.first(layer))

    def prepare_check(self, num_tokens: int) -> None:
        """Nothing takes long enough to be done ahead; see `base.Runner`."""

    def prepare_exit(self, layer: int) -> None:
        """Cut the model off; see `base.Runner`."""
        self._first(layer)

    def _first(self, layer: int) -> PreTrainedModel:
        """The model cut off after a layer."""
        if layer not in self._exits:
            self._exits[layer] = first_layers(self._model, layer, self.shape.num_layers)
        return self._exits[layer]

    def _probe_exit(self, run: Callable[[Batch], list[Sample]]) -> None:
        """Run a token, whose keys and values go where no sequence's are."""
        request = Request("probe", ((0,),), SamplingParams(temperature=0), model="")
        (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=2)
        seq.block_table = [self.num_blocks]
        try:
            run(Batch((Chunk(seq, 0, 1, samples=True),)))
        except Exception as error:
            kind, reason = self.info.architecture, " ".join(str(error).split())
            raise LoadError(f"{kind} cannot be left early: {reason}") from error

    def as_drafter(self) -> StepByStep:
        """A drafter on all layers; see `base.Runner`."""
        return StepByStep(self.run, self.shape)

    @torch.inference_mode()
    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy blocks in every layer; see `base.Runner`."""
        self._attention.copy_blocks(copies, self.block_size)

    def run(self, batch: Batch) -> list[Sample]:
        """Run one batch; see `base.Runner`."""
        if not batch.has_exits:
            return self._run(self._model, batch)
        return run_leaving_early(
            batch.chunks,
            _FirstLayers(self),
            lambda chunks: self._run(self._model, Batch(tuple(chunks))),
        )

    def exit_logits(self, chunks: list[Chunk]) -> Tensor:
        """Logits of chunks of one token at their requests' exit."""
        torch.set_num_threads(self._plan.threads_for(len(chunks)))
        return self._logits(self._first(exit_layer(chunks)), chunks, [range(1)] * len(chunks))

    @torch.inference_mode()
    def _run(self, model: PreTrainedModel, batch: Batch) -> list[Sample]:
        torch.set_num_threads(self._plan.threads_for(batch.num_tokens))
        order = order_chunks(batch)
        chunks = [batch.chunks[i] for i in order]
        rows = [wanted_rows(chunk) for chunk in chunks]
        results = read_out(chunks, rows, self._logits(model, chunks, rows))
        samples = [Sample()] * len(chunks)
        for place, result in zip(order, results, strict=True):
            samples[place] = result
        return samples

    def logits(self, chunks: list[Chunk], rows: list[range]) -> Tensor:
        """Logits `[wanted rows, vocabulary]` in float32; single-token chunks come first."""
        return self._logits(self._model, chunks, rows)

    @torch.inference_mode()
    def _logits(self, model: PreTrainedModel, chunks: list[Chunk], rows: list[range]) -> Tensor:
        self._bank.begin(chunks)
        keep = packed_rows(chunks, rows)
        if self._recorded is not None and not self._bank.is_used:
            found = self._recorded.logits(model, chunks)
            if found is not None:
                return found if len(keep) == len(found) else found[keep]
        plan = make_plan(chunks, self.block_size, side_by_side=self.prompts_side_by_side)
        self._attention.use(plan)
        ids = [token for chunk in chunks for token in chunk.token_ids]
        positions = [p for chunk in chunks for p in range(chunk.start, chunk.end)]
        output = model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(keep or [0], device=self._device),
        )
        logits: Tensor = output.logits[0].float()
        return logits if keep else logits[:0]


class _FirstLayers:
    """A runner's first layers, one step after another; see `exiting.FirstLayers`."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner

    def logits(self, chunks: list[Chunk]) -> Tensor:
        """See `exiting.FirstLayers`."""
        return self._runner.exit_logits(chunks)

    def tokens(self, chunks: list[Chunk]) -> list[list[LikelyToken]]:
        """See `exiting.FirstLayers`."""
        found: list[list[LikelyToken]] = [[] for _ in chunks]
        current = [plain(chunk) for chunk in chunks]
        for _ in range(EXIT_RUN):
            best = self._runner.exit_logits(current).softmax(dim=-1).max(dim=-1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            for tokens, chunk, (token_id, probability) in zip(found, current, pairs, strict=True):
                tokens.append(LikelyToken(token_id, probability))
                chunk.seq.token_ids.append(token_id)
            current = [replace(chunk, start=chunk.end) for chunk in current]
        return found


def load_torch_runner(
    name: str,
    options: LoadOptions,
    *,
    block_size: int = 16,
    kv_cache_bytes: int = 2**30,
    max_num_seqs: int = 64,
    num_blocks: int | None = None,
    eager: bool = False,
) -> TorchRunner:
    """Load a model and wrap it; without `num_blocks` there are as many as useful, within the bytes.

    `eager` launches every kernel by itself, also where steps could be replayed.

    Raises:
        LoadError: the model cannot be loaded or run.
    """
    attention = PagedAttention()
    key = f"greenllm_paged_{id(attention)}"
    AttentionInterface.register(key, attention.attend)
    loaded = load_model(name, replace(options, attention=key))
    return TorchRunner(
        loaded,
        attention,
        block_size=block_size,
        kv_cache_bytes=kv_cache_bytes,
        max_num_seqs=max_num_seqs,
        num_blocks=num_blocks,
        eager=eager,
    )
