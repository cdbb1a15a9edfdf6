"""The OpenVINO runner: the fast path on CPUs.

Contract: see `base.Runner`. Compiled decoders share one set of key and value blocks: one for each
number of threads in use, and another of each for steps with adapters, so that steps without any pay
nothing for them. Compiled when first needed; a step then waits for it.

With float32 arithmetic greedy tokens equal the torch runner's (tested); with bfloat16 near-ties may
turn. Not covered: other devices than CPUs, several streams, layers as a variable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray

from greenllm.core import Batch, Chunk, Sample
from greenllm.model.decoder_weights import DecoderWeights
from greenllm.model.info import LoadError, ModelInfo
from greenllm.runner.base import AdapterSource
from greenllm.runner.openvino.graph import GraphOptions, build_graph
from greenllm.runner.openvino.lora import LoraBank
from greenllm.runner.openvino.precision import Precision
from greenllm.runner.readout import packed_rows, read_out, wanted_rows
from greenllm.runner.threads import ThreadPlan
from greenllm.shape import ModelShape


@dataclass(slots=True)
class _Decoder:
    """A compiled graph and its request; `num_slots` is what its adapter inputs were last set to."""

    request: ov.InferRequest
    bound: tuple[int, int] = (0, 0)


class OpenVinoRunner:
    """Owns the graphs and the KV cache."""

    def __init__(
        self,
        weights: DecoderWeights,
        info: ModelInfo,
        precision: Precision,
        *,
        kv_cache_bytes: int,
        max_num_seqs: int,
    ) -> None:
        spec = weights.spec
        self.lora_targets: Mapping[str, tuple[int, int]] = spec.lora_targets
        self._weights = weights
        self._precision = precision
        self._core = ov.Core()
        self._plan = ThreadPlan.fixed(1)
        self._source: AdapterSource | None = None
        self._bank = LoraBank(spec, frozenset(), precision.lora_type)
        self._frequencies = np.array(spec.inverse_frequencies, np.float64)
        self._decoders: dict[tuple[int, bool], _Decoder] = {}
        compiled = self._compile(1, frozenset())
        self.block_size = _cache_dims(compiled, "value.0")[1]
        block_bytes = spec.num_layers * sum(
            math.prod(_cache_dims(compiled, name)) * _width(compiled, name)
            for name in ("key.0", "value.0")
        )
        self.num_blocks = min(
            kv_cache_bytes // block_bytes,
            max_num_seqs * -(-info.context_length // self.block_size),
        )
        context = min(info.context_length, self.num_blocks * self.block_size)
        if context < 2 * self.block_size:
            raise LoadError(
                f"a context of {context} tokens is too small: raise --kv-cache-gb or --max-context"
            )
        self.info: ModelInfo = replace(info, context_length=context, weight_bytes=weights.num_bytes)
        self.shape: ModelShape = spec.shape(block_bytes // self.block_size)
        self._caches = self._allocate(compiled)
        self._decoders[1, False] = self._open(compiled)

    def _compile(self, threads: int, lora_groups: frozenset[str]) -> ov.CompiledModel:
        precision = self._precision
        options = GraphOptions(precision.floats, lora_groups, precision.lora_type)
        model = build_graph(self._weights, options)
        return self._core.compile_model(model, "CPU", precision.properties(threads))

    def _allocate(self, compiled: ov.CompiledModel) -> dict[str, ov.Tensor]:
        """Zeroed blocks for every layer; the plugin chose their type and layout.

        numpy's zeros take no memory before they are written.
        """
        caches: dict[str, ov.Tensor] = {}
        for port in compiled.inputs:
            name = port.get_any_name()
            if name.startswith(("key.", "value.")):
                dims = [self.num_blocks, *_cache_dims(compiled, name)]
                kind = port.get_element_type()
                zeros = np.zeros(dims, {1: np.uint8, 2: np.uint16, 4: np.float32}[kind.size])
                caches[name] = ov.Tensor(zeros, dims, kind)
        return caches

    def _open(self, compiled: ov.CompiledModel) -> _Decoder:
        request = compiled.create_infer_request()
        for name, tensor in self._caches.items():
            request.set_tensor(name, tensor)
        return _Decoder(request)

    def use_adapters(self, source: AdapterSource) -> None:
        """Say where weights come from; see `base.Runner`."""
        self._source = source

    def use_threads(self, plan: ThreadPlan, *, trial: bool = False) -> None:
        """Set how many threads run a step; unless on trial, drop the graphs for other numbers."""
        self._plan = plan
        if trial:
            return
        kept = set(plan.threads)
        self._decoders = {key: held for key, held in self._decoders.items() if key[0] in kept}

    def run(self, batch: Batch) -> list[Sample]:
        """Run one batch; see `base.Runner`."""
        chunks = list(batch.chunks)
        rows = [wanted_rows(chunk) for chunk in chunks]
        return read_out(chunks, rows, self.logits(chunks, rows))

    def logits(self, chunks: list[Chunk], rows: list[range]) -> torch.Tensor:
        """Logits `[wanted rows, vocabulary]`, float32, valid until the next step."""
        keep = packed_rows(chunks, rows)
        inputs = _step_arrays(chunks, self.block_size)
        inputs |= self._angles(chunks)
        # The graph computes at least one row: a gather of none is a shape not every kernel takes.
        inputs["rows"] = np.array(keep or [0], np.int32)
        num_tokens = len(inputs["ids"])
        decoder = self._decoder(chunks, self._plan.threads_for(num_tokens), inputs)
        request = decoder.request
        for name, values in inputs.items():
            request.set_tensor(name, ov.Tensor(values))
        request.infer()
        logits = torch.from_numpy(request.get_output_tensor(0).data)
        return logits if keep else logits[:0]

    def _angles(self, chunks: list[Chunk]) -> dict[str, NDArray[np.generic]]:
        """Cosines and sines of every token's position, [tokens, 1, 1, head_dim]."""
        positions = np.concatenate([np.arange(c.start, c.end) for c in chunks])
        angles = positions[:, None] * self._frequencies
        both = np.concatenate([angles, angles], axis=1)[:, None, None]
        return {"cosine": np.cos(both).astype(np.float32), "sine": np.sin(both).astype(np.float32)}

    def _decoder(
        self, chunks: list[Chunk], threads: int, inputs: dict[str, NDArray[np.generic]]
    ) -> _Decoder:
        """The compiled graph for this step, its adapters in place."""
        digests = list(
            dict.fromkeys(c.seq.request.adapter.digest for c in chunks if c.seq.request.adapter)
        )
        if not digests:
            return self._compiled(threads, with_adapters=False)
        if self._source is None:
            raise LoadError("a request names an adapter, but none can be loaded")
        source = self._source
        self._adapt({group for d in digests for group in self._groups(source, d)})
        placed = self._bank.place(digests, source.weights)
        decoder = self._compiled(threads, with_adapters=True)
        if decoder.bound != (placed.num_slots, self._bank.generation):
            for name, tensor in self._bank.matrices(placed.num_slots).items():
                decoder.request.set_tensor(name, tensor)
            decoder.bound = (placed.num_slots, self._bank.generation)
        slots = [
            placed.slots[c.seq.request.adapter.digest] if c.seq.request.adapter else -1
            for c in chunks
        ]
        of_token = np.repeat(np.array(slots, np.int32), [c.num_tokens for c in chunks])
        inputs |= self._bank.masks(of_token, placed.num_slots)
        return decoder

    def _groups(self, source: AdapterSource, digest: str) -> set[str]:
        """Projections that an adapter changes."""
        names = {path.split(".", 3)[3] for path in source.weights(digest).layers}
        return {
            projection.group
            for projection in self._weights.spec.projections
            if any(module in names for module, _ in projection.modules)
        }

    def _adapt(self, groups: set[str]) -> None:
        """Make the graphs with adapters cover these projections too."""
        wanted = self._bank.groups | groups
        if wanted != self._bank.groups:
            self._bank = LoraBank(self._weights.spec, wanted, self._precision.lora_type)
            self._decoders = {k: held for k, held in self._decoders.items() if not k[1]}

    def _compiled(self, threads: int, *, with_adapters: bool) -> _Decoder:
        key = threads, with_adapters
        if key not in self._decoders:
            groups = self._bank.groups if with_adapters else frozenset[str]()
            self._decoders[key] = self._open(self._compile(threads, groups))
        return self._decoders[key]


def _cache_dims(compiled: ov.CompiledModel, name: str) -> list[int]:
    """[heads, tokens, width] of one cache block; 8-bit caches hold their scales in it too."""
    shape = compiled.input(name).get_partial_shape()
    return [shape[axis].get_length() for axis in (1, 2, 3)]


def _width(compiled: ov.CompiledModel, name: str) -> int:
    """Bytes of one number in a cache."""
    return int(compiled.input(name).get_element_type().size)


def _step_arrays(chunks: list[Chunk], block_size: int) -> dict[str, NDArray[np.generic]]:
    """The ragged batch as int32 arrays; see `attention.StepInputs`."""
    ids: list[int] = []
    blocks: list[int] = []
    begins, block_begins = [0], [0]
    for chunk in chunks:
        ids += chunk.token_ids
        blocks += chunk.seq.block_table[: -(-chunk.end // block_size)]
        begins.append(len(ids))
        block_begins.append(len(blocks))
    lists = {
        "ids": ids,
        "past_lens": [chunk.start for chunk in chunks],
        "subsequence_begins": begins,
        "block_indices": blocks,
        "block_indices_begins": block_begins,
    }
    arrays: dict[str, NDArray[np.generic]] = {
        name: np.array(values, np.int32) for name, values in lists.items()
    }
    arrays["max_context_len"] = np.array(max(chunk.end for chunk in chunks), np.int32)
    return arrays
