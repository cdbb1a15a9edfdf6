"""The torch runner: any transformers decoder, driven directly, one packed row per step.

Contract: see `base.Runner`. Logits are computed only for rows that are sampled or scored. Greedy
tokens equal those of transformers' `generate` up to rounding between kernels (tested).

Not covered: several processes, CUDA graphs, speculation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import AttentionInterface

from greenllm.core import Batch, Chunk, GreenllmError, Sample, TokenLogprob
from greenllm.decode.sampling import sample, token_logprobs
from greenllm.model.info import LoadError, ModelInfo
from greenllm.model.loader import LoadedModel, LoadOptions, load_model
from greenllm.runner.attention import (
    PagedAttention,
    hidden_window,
    make_plan,
    order_chunks,
)
from greenllm.runner.base import AdapterSource
from greenllm.runner.lora import LoraBank
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
    ) -> None:
        self.block_size = block_size
        self._model = loaded.model
        self._attention = attention
        self._bank = LoraBank(loaded.model)
        self._device = loaded.model.get_input_embeddings().weight.device
        self._probe(loaded)
        self.lora_targets: Mapping[str, tuple[int, int]] = self._bank.targets
        kv_bytes = sum(layer.bytes_per_token for layer in attention.layers.values())
        self.shape: ModelShape = replace(loaded.shape, kv_bytes_per_token=kv_bytes)
        wanted = kv_cache_bytes // (kv_bytes * block_size)
        useful = max_num_seqs * -(-loaded.info.context_length // block_size)
        self.num_blocks = min(wanted, useful)
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
        attention.allocate(self.num_blocks * block_size)

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

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Sample]:
        """Run one batch; see `base.Runner`."""
        order = order_chunks(batch)
        chunks = [batch.chunks[i] for i in order]
        self._attention.use(make_plan(chunks, self.block_size))
        self._bank.begin(chunks)
        rows = [_wanted_rows(chunk) for chunk in chunks]
        logits = self._forward(chunks, rows)
        results = _read_out(chunks, rows, logits)
        samples = [Sample(None)] * len(chunks)
        for place, result in zip(order, results, strict=True):
            samples[place] = result
        return samples

    def _forward(self, chunks: list[Chunk], rows: list[range]) -> Tensor:
        """Logits `[wanted rows, vocabulary]` in float32."""
        ids = [token for chunk in chunks for token in chunk.token_ids]
        positions = [p for chunk in chunks for p in range(chunk.start, chunk.end)]
        keep: list[int] = []
        begin = 0
        for chunk, wanted in zip(chunks, rows, strict=True):
            keep += [begin + i for i in wanted]
            begin += chunk.num_tokens
        output = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(keep or [0], device=self._device),
        )
        logits: Tensor = output.logits[0].float()
        return logits if keep else logits[:0]


def _wanted_rows(chunk: Chunk) -> range:
    """Rows of a chunk whose logits are needed: all when the prompt is scored, else the last."""
    if chunk.seq.sampling.prompt_logprobs is not None and chunk.start < chunk.seq.prompt_len:
        return range(chunk.num_tokens)
    return range(chunk.num_tokens - 1, chunk.num_tokens) if chunk.samples else range(0)


def _read_out(chunks: list[Chunk], rows: list[range], logits: Tensor) -> list[Sample]:
    """Score prompts and sample next tokens from the wanted rows' logits."""
    ends: list[int] = []
    prompts: list[tuple[TokenLogprob, ...]] = []
    begin = 0
    for chunk, wanted in zip(chunks, rows, strict=True):
        ends.append(begin + len(wanted) - 1)
        prompts.append(_score_prompt(chunk, logits[begin : begin + len(wanted)]))
        begin += len(wanted)
    sampled = [i for i, chunk in enumerate(chunks) if _draws(chunk)]
    chosen = sample(logits[[ends[i] for i in sampled]], [chunks[i].seq for i in sampled])
    results = [Sample(None, prompt=prompt) for prompt in prompts]
    for i, choice in zip(sampled, chosen, strict=True):
        results[i] = replace(choice, prompt=prompts[i])
    return results


def _draws(chunk: Chunk) -> bool:
    """Whether a token is generated; with max_tokens 0 the prompt is only scored."""
    return chunk.samples and len(chunk.seq.token_ids) < chunk.seq.max_len


def _score_prompt(chunk: Chunk, logits: Tensor) -> tuple[TokenLogprob, ...]:
    """Log probabilities of the prompt tokens that the chunk's rows predict."""
    count = chunk.seq.sampling.prompt_logprobs
    last = min(chunk.end, chunk.seq.prompt_len - 1)
    if count is None or chunk.start >= last:
        return ()
    targets = chunk.seq.token_ids[chunk.start + 1 : last + 1]
    scores = token_logprobs(logits[: len(targets)], targets, [count] * len(targets))
    return tuple(scores)


def load_torch_runner(
    name: str,
    options: LoadOptions,
    *,
    block_size: int = 16,
    kv_cache_bytes: int = 2**30,
    max_num_seqs: int = 64,
) -> TorchRunner:
    """Load a model and wrap it.

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
    )
