"""The OpenVINO runner: the fast path on CPUs.

Contract: see `base.Runner`. There is a compiled decoder for each number of threads in use, and
another of each for steps with adapters, so that steps without any pay nothing for them. Those are
compiled by `prepare_adapter`, in the caller's thread, while steps go on.

With float32 arithmetic greedy tokens equal the torch runner's (tested); with bfloat16 near-ties may
turn. Not covered: other devices than CPUs, several streams, layers as a variable.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from greenllm.core import Batch, Chunk, Sample
from greenllm.exits import EXIT_RUN, MOST_PENDING
from greenllm.model.decoder_weights import DecoderWeights
from greenllm.model.info import LoadError, ModelInfo
from greenllm.runner.base import AdapterSource
from greenllm.runner.exiting import run_leaving_early
from greenllm.runner.openvino.decoders import Decoder, DecoderFactory
from greenllm.runner.openvino.drafter import UnrolledDrafter
from greenllm.runner.openvino.exit_graphs import ExitGraphs
from greenllm.runner.openvino.inputs import Arrays, Rotation, positions_of, step_arrays
from greenllm.runner.openvino.lora import LoraBank
from greenllm.runner.openvino.precision import Precision
from greenllm.runner.openvino.single import SingleDecoders
from greenllm.runner.readout import packed_rows, read_out, wanted_rows
from greenllm.runner.threads import ThreadPlan
from greenllm.shape import ModelShape

# Steps of one sequence: its newest token, a short prompt.
_SINGLE = (1, 32, 64)
# Tokens of a step after several early exits.
_UP_TO = (2 * EXIT_RUN, MOST_PENDING + EXIT_RUN)


@dataclass(slots=True)
class _Adapted:
    """The bank and the decoders that read it, by number of threads."""

    bank: LoraBank
    decoders: dict[int, Decoder]


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
        num_blocks: int | None = None,
    ) -> None:
        self._spec = weights.spec
        self.lora_targets: Mapping[str, tuple[int, int]] = self._spec.lora_targets
        self._precision = precision
        self._plan = ThreadPlan.fixed(1)
        self._rotation = Rotation(self._spec.inverse_frequencies)
        self._drafters: dict[int, UnrolledDrafter] = {}
        self._factory = DecoderFactory(weights, precision)
        self.block_size = self._factory.block_size
        self.num_blocks = num_blocks or min(
            kv_cache_bytes // self._factory.block_bytes,
            max_num_seqs * -(-info.context_length // self.block_size),
        )
        context = min(info.context_length, self.num_blocks * self.block_size)
        if context < 2 * self.block_size:
            raise LoadError(
                f"a context of {context} tokens is too small: raise --kv-cache-gb or --max-context"
            )
        self.info: ModelInfo = replace(info, context_length=context, weight_bytes=weights.num_bytes)
        self.shape: ModelShape = self._shape(self._spec.num_layers)
        self._factory.allocate(self.num_blocks)
        self._decoders = {1: self._factory.compile(1)}
        self._single = SingleDecoders(self._factory, self._rotation, self._plan)
        self._exits = ExitGraphs(self._factory, self._rotation, self._plan)
        self._source: AdapterSource | None = None
        self._lock = threading.Lock()
        self._groups_of: dict[str, frozenset[str]] = {}
        self._adapted = self._in_use = self._no_adapters()

    def use_adapters(self, source: AdapterSource) -> None:
        """Say where weights come from; see `base.Runner`."""
        self._source = source

    def use_threads(self, plan: ThreadPlan, *, trial: bool = False) -> None:
        """Set how many threads run a step; unless on trial, drop the graphs for other numbers."""
        self._plan = plan
        for threads in set(plan.threads) - set(self._decoders):
            self._decoders[threads] = self._factory.compile(threads)
        if not trial:
            self._decoders = {t: self._decoders[t] for t in set(plan.threads)}
            self._single.use_threads(plan)
            self._single.prepare(*_SINGLE)
            for drafter in self._drafters.values():
                drafter.use_threads(plan)
            self._exits.use_threads(plan)
        self._adapted = self._no_adapters()

    def prepare_check(self, num_tokens: int) -> None:
        """Compile the graph that checks one sequence's draft; see `base.Runner`."""
        self._single.prepare(1 + num_tokens)

    def prepare_exit(self, layer: int) -> None:
        """Compile the graphs that end after a layer; see `base.Runner`."""
        self._check_exit(layer)
        self._exits.prepare(layer)
        self._single.prepare(*_UP_TO)

    def early_exit(self, layer: int) -> UnrolledDrafter:
        """A drafter on the first layers; see `base.Runner`."""
        self._check_exit(layer)
        return self._drafter(layer)

    def _check_exit(self, layer: int) -> None:
        last = self._spec.num_layers - 1
        if not 1 <= layer <= last:
            raise LoadError(f"no early exit after layer {layer}: it must be in [1, {last}]")

    def as_drafter(self) -> UnrolledDrafter:
        """A drafter on all layers; see `base.Runner`."""
        return self._drafter(self._spec.num_layers)

    def _drafter(self, number: int) -> UnrolledDrafter:
        if number not in self._drafters:
            self._drafters[number] = UnrolledDrafter(
                self._factory,
                self._rotation,
                number,
                self._shape(number),
                self._plan,
                is_exit=number < self._spec.num_layers,
            )
        return self._drafters[number]

    def _shape(self, num_layers: int) -> ModelShape:
        spec = replace(self._spec, num_layers=num_layers)
        per_token = self._factory.block_bytes // self.block_size
        return spec.shape(per_token * num_layers // self._spec.num_layers)

    def _no_adapters(self) -> _Adapted:
        bank = LoraBank(self._spec, frozenset(), self._precision.lora_type)
        return _Adapted(bank, {})

    def prepare_adapter(self, digest: str) -> None:
        """Compile the graphs that an adapter needs; see `base.Runner`."""
        groups = self._groups(digest)
        if self._covers(self._adapted, groups):
            return  # without waiting for somebody else's compilation
        with self._lock:
            adapted = self._adapted
            wanted = adapted.bank.groups | groups
            threads = set(self._plan.threads)
            if self._covers(adapted, groups):
                return
            self._adapted = _Adapted(
                LoraBank(self._spec, wanted, self._precision.lora_type),
                {number: self._factory.compile(number, wanted) for number in threads},
            )

    def _covers(self, adapted: _Adapted, groups: frozenset[str]) -> bool:
        return groups <= adapted.bank.groups and set(self._plan.threads) <= set(adapted.decoders)

    def _groups(self, digest: str) -> frozenset[str]:
        """Projections that an adapter changes."""
        if digest not in self._groups_of:
            self._groups_of[digest] = self._find_groups(digest)
        return self._groups_of[digest]

    def _find_groups(self, digest: str) -> frozenset[str]:
        if self._source is None:
            raise LoadError("a request names an adapter, but none can be loaded")
        names = {path.split(".", 3)[3] for path in self._source.weights(digest).layers}
        return frozenset(
            projection.group
            for projection in self._spec.projections
            if any(module in names for module, _ in projection.modules)
        )

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy blocks in every layer; see `base.Runner`."""
        self._factory.copy_blocks(copies)

    def run(self, batch: Batch) -> list[Sample]:
        """Run one batch; see `base.Runner`."""
        if not batch.has_exits:
            return self._run([*batch.chunks])
        return run_leaving_early(batch.chunks, self._exits, self._run)

    def _run(self, chunks: list[Chunk]) -> list[Sample]:
        rows = [wanted_rows(chunk) for chunk in chunks]
        return read_out(chunks, rows, self.logits(chunks, rows))

    def logits(self, chunks: list[Chunk], rows: list[range]) -> torch.Tensor:
        """Logits `[wanted rows, vocabulary]`, float32, valid until the next step."""
        found = self._single_logits(chunks[0], rows[0]) if len(chunks) == 1 else None
        if found is not None:
            return torch.from_numpy(found)
        keep = packed_rows(chunks, rows)
        # The graph computes at least one row: a gather of none is a shape not every kernel takes.
        inputs = self._inputs(chunks, keep or [0])
        decoder = self._decoder(chunks, inputs)
        logits = torch.from_numpy(decoder.infer(inputs))
        return logits if keep else logits[:0]

    def _single_logits(self, chunk: Chunk, rows: range) -> NDArray[Any] | None:
        """Logits of a step of one sequence, where they are there or there is a graph for it."""
        for drafter in self._drafters.values():
            if (checked := drafter.checked(chunk)) is not None:
                return checked
        return self._single.logits(chunk, rows) if rows else None

    def _inputs(self, chunks: list[Chunk], rows: list[int]) -> Arrays:
        inputs = step_arrays(chunks, self.block_size)
        inputs |= self._rotation.of(positions_of(chunks))
        inputs["rows"] = np.array(rows, np.int32)
        return inputs

    def _decoder(self, chunks: list[Chunk], inputs: Arrays) -> Decoder:
        """The graph for this step; adds the adapters' masks to its inputs."""
        threads = self._plan.threads_for(len(inputs["ids"]))
        refs = [chunk.seq.request.adapter for chunk in chunks]
        digests = list(dict.fromkeys(ref.digest for ref in refs if ref is not None))
        if not digests:
            return self._decoders[threads]
        adapted = self._with_adapters(digests)
        source = self._source
        if source is None:
            raise LoadError("a request names an adapter, but none can be loaded")
        bank, decoder = adapted.bank, adapted.decoders[threads]
        placed = bank.place(digests, source.weights)
        if decoder.bound != (placed.num_slots, bank.generation):
            decoder.bound = (0, 0)  # until all are set
            for name, tensor in bank.matrices(placed.num_slots).items():
                decoder.request.set_tensor(name, tensor)
            decoder.bound = (placed.num_slots, bank.generation)
        slots = [-1 if ref is None else placed.slots[ref.digest] for ref in refs]
        of_token = np.repeat(np.array(slots, np.int32), [c.num_tokens for c in chunks])
        inputs |= bank.masks(of_token, placed.num_slots)
        return decoder

    def _with_adapters(self, digests: list[str]) -> _Adapted:
        """A bank that covers these adapters; compiled now for those that nobody prepared."""
        for digest in digests:
            self.prepare_adapter(digest)
        # The graph reads the bank's memory while it runs: another thread may put a wider bank in
        # its place meanwhile, and this one must outlive the step.
        self._in_use = self._adapted
        return self._in_use
