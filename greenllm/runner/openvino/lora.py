"""Adapters as graph inputs: stacked along the rank, masked per token, changed without recompiling.

For each adapted projection the graph computes `y += where(mask, x @ A.T, 0) @ B`: selected and not
multiplied, for what another adapter makes of a token may be infinite. A bank has slots; slot s owns
rows [s * parts * rank, (s + 1) * parts * rank) of A and B, `parts` modules side by side, and B is
zero outside a module's own columns. A step uses the first slots only, a power of two of them, so a
batch with two adapters does not pay for eight.

Not covered: adapters on the embedding or the head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino import Node, Output, Type, opset13

from greenllm.model.lora import LoraWeights
from greenllm.model.spec import DecoderSpec, Projection
from greenllm.runner.openvino.nodes import parameter, scalar

log = logging.getLogger(__name__)

Array = NDArray[np.generic]
# Steps with adapters between two looks at whether the bank is too large, and what too large is.
_LOOK_EVERY = 1024
_MAX_EXCESS = 4


class LoraInputs:
    """The graph's side: parameters for A, B and the masks of the adapted projections."""

    def __init__(self, spec: DecoderSpec, groups: frozenset[str], kind: Type) -> None:
        self.parameters: list[Node] = []
        self._groups = groups
        self._kind = kind
        self._masks: dict[int, Node] = {}
        for count in sorted({len(p.modules) for p in spec.projections if p.group in groups}):
            self._masks[count] = self._input(mask_name(count), Type.boolean, [-1, -1])

    def _input(self, name: str, kind: Type, shape: list[int]) -> Node:
        self.parameters.append(parameter(name, kind, shape))
        return self.parameters[-1]

    def add(self, layer: int, projection: Projection, x: Output, y: Output) -> Output:
        """`y` plus what the adapters of each token add."""
        if projection.group not in self._groups:
            return y
        name_a, name_b = matrix_names(layer, projection.group)
        down = self._matrix(name_a, projection.in_features)
        up = self._matrix(name_b, projection.out_features)
        inner = opset13.matmul(x, down, False, True)
        masked = opset13.select(self._masks[len(projection.modules)], inner, scalar(0))
        return opset13.add(y, opset13.matmul(masked, up, False, False)).output(0)

    def _matrix(self, name: str, width: int) -> Output:
        node = self._input(name, self._kind, [-1, width])
        if self._kind == Type.f32:
            return node.output(0)
        return opset13.convert(node, Type.f32).output(0)


def mask_name(parts: int) -> str:
    """Graph input for the mask of projections with that many modules."""
    return f"lora_mask.{parts}"


def matrix_names(layer: int, group: str) -> tuple[str, str]:
    """Graph inputs for A and B."""
    return f"lora_a.{layer}.{group}", f"lora_b.{layer}.{group}"


@dataclass(slots=True)
class _Slot:
    """What a slot holds, and when a step last used it."""

    digest: str | None = None
    used: int = 0


@dataclass(slots=True)
class Placement:
    """A step's adapters in the bank: the slot of each digest, and how many slots the step uses."""

    slots: dict[str, int]
    num_slots: int


@dataclass(slots=True)
class LoraBank:
    """The host's side: arrays that back A and B, and which adapter sits in which slot.

    It grows when a step needs more slots or a higher rank than there are, and shrinks when those of
    many steps needed far less. `generation` counts allocations: after one, tensors over the old
    arrays are stale. After an error it is as it was.
    """

    spec: DecoderSpec
    groups: frozenset[str]
    kind: Type
    rank: int = 0
    generation: int = 0
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)
    _slots: list[_Slot] = field(default_factory=list)
    _clock: int = 0
    _peak: tuple[int, int] = (0, 0)

    @property
    def num_slots(self) -> int:
        """Adapters there is room for."""
        return len(self._slots)

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def projections(self) -> list[Projection]:
        """Adapted projections."""
        return [p for p in self.spec.projections if p.group in self.groups]

    def place(self, digests: Sequence[str], weights: Callable[[str], LoraWeights]) -> Placement:
        """Bring the adapters of a step into the lowest slots."""
        self._clock += 1
        needed = {digest: weights(digest) for digest in digests}
        num_slots = 1 << (len(needed) - 1).bit_length()
        self._fit(num_slots, max(adapter.rank for adapter in needed.values()))
        placed: dict[str, int] = {}
        for index, slot in enumerate(self._slots[:num_slots]):
            if slot.digest in needed:
                placed[str(slot.digest)] = index
        for digest in needed:
            if digest not in placed:
                placed[digest] = self._fill(needed[digest], num_slots, placed)
        for index in placed.values():
            self._slots[index].used = self._clock
        return Placement(placed, num_slots)

    def _fit(self, num_slots: int, rank: int) -> None:
        """Grow for a step, or from time to time shrink to the most that steps since have needed."""
        self._peak = max(num_slots, self._peak[0]), max(rank, self._peak[1])
        if num_slots > self.num_slots or rank > self.rank:
            self._allocate(max(num_slots, self.num_slots), max(rank, self.rank))
        elif self._clock % _LOOK_EVERY == 0:
            if _MAX_EXCESS * self._peak[0] * self._peak[1] <= self.num_slots * self.rank:
                self._allocate(*self._peak)
            self._peak = num_slots, rank

    def _fill(self, adapter: LoraWeights, num_slots: int, placed: dict[str, int]) -> int:
        """Write an adapter over the slot that was used longest ago."""
        taken = set(placed.values())
        index = min(
            (i for i in range(num_slots) if i not in taken), key=lambda i: self._slots[i].used
        )
        self._slots[index].digest = None
        for layer in range(self.spec.num_layers):
            for projection in self.projections:
                self._write(index, layer, projection, adapter)
        self._slots[index].digest = adapter.digest
        return index

    def _write(self, index: int, layer: int, projection: Projection, adapter: LoraWeights) -> None:
        parts = len(projection.modules)
        first = index * parts * self.rank
        name_a, name_b = matrix_names(layer, projection.group)
        down = self.arrays[name_a][first : first + parts * self.rank].zero_()
        up = self.arrays[name_b][first : first + parts * self.rank].zero_()
        column = 0
        for part, (module, width) in enumerate(projection.modules):
            pair = adapter.layers.get(f"model.layers.{layer}.{module}")
            if pair is not None:
                rows = slice(part * self.rank, part * self.rank + pair[0].shape[0])
                down[rows] = pair[0]
                up[rows, column : column + width] = pair[1].T
            column += width

    def _allocate(self, num_slots: int, rank: int) -> None:
        """Make room; what was in the bank is written again when a step needs it."""
        fresh: dict[str, torch.Tensor] = {}
        dtype = torch.float32 if self.kind == Type.f32 else torch.bfloat16
        for layer in range(self.spec.num_layers):
            for projection in self.projections:
                rows = num_slots * len(projection.modules) * rank
                name_a, name_b = matrix_names(layer, projection.group)
                fresh[name_a] = torch.zeros(rows, projection.in_features, dtype=dtype)
                fresh[name_b] = torch.zeros(rows, projection.out_features, dtype=dtype)
        self.arrays, self.rank = fresh, rank
        self._slots = [_Slot() for _ in range(num_slots)]
        self.generation += 1
        megabytes = self.num_bytes / 1e6
        log.info("room for %d adapters of rank %d: %.1f MB", num_slots, rank, megabytes)

    def matrices(self, num_slots: int) -> dict[str, ov.Tensor]:
        """A and B of the first slots, as tensors over the bank's own memory."""
        tensors: dict[str, ov.Tensor] = {}
        for layer in range(self.spec.num_layers):
            for projection in self.projections:
                rows = num_slots * len(projection.modules) * self.rank
                for name in matrix_names(layer, projection.group):
                    view = self.arrays[name][:rows]
                    # numpy has no bfloat16: the same bytes under another name.
                    plain = view if self.kind == Type.f32 else view.view(torch.uint16)
                    tensors[name] = ov.Tensor(plain.numpy(), list(view.shape), self.kind)
        return tensors

    def masks(self, slot_of_token: NDArray[np.int32], num_slots: int) -> dict[str, Array]:
        """One row per token: true on its adapter's slot (-1: none), for each number of parts."""
        chosen = slot_of_token[:, None] == np.arange(num_slots)
        counts = {len(projection.modules) for projection in self.projections}
        return {mask_name(parts): np.repeat(chosen, parts * self.rank, axis=1) for parts in counts}
