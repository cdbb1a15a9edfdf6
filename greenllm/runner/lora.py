"""LoRA in the torch runner: rows of different adapters, and of none, in one step.

The adapters of a step are stacked along the rank dimension, module by module, and every token keeps
only the columns of its own adapter:

    y += keep(x @ A_all^T) @ B_all^T

Contract: a token without an adapter gets exactly what it gets without company; others what their
adapter alone gives, up to rounding. Sums run in the module's output dtype, on its device. A server
whose requests name no adapter has no hooks installed.

Not covered: the head, embeddings, experts of a mixture (see `greenllm.model.targets`). Stacks of
the last few sets of adapters stay in memory after the registry has let go of an adapter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from greenllm.core import Chunk
from greenllm.model.lora import LoraWeights
from greenllm.model.targets import features_of, linear_modules
from greenllm.runner.base import AdapterSource

_MAX_STACKS = 4
# A stack of more adapters than a step needs is used as it is, up to this factor.
_MAX_EXCESS = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Site:
    """A module that adapters may change, and what comes out of it."""

    module: nn.Module
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One module's matrices, transposed and side by side: [in, ranks] and [ranks, out]."""

    a: Tensor
    b: Tensor
    split: int


@dataclass(frozen=True, slots=True, eq=False)
class _Stack:
    """Several adapters as one.

    `places` numbers them. `splits` says whose each column of a layer is; layers share a few.
    """

    places: Mapping[str, int]
    splits: tuple[Tensor, ...]
    layers: Mapping[str, _Layer]


@dataclass(slots=True)
class _Step:
    """The stack in use, the place of each token's adapter (-1 for none), and masks made so far."""

    stack: _Stack
    places: Tensor
    masks: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def foreign(self, layer: _Layer) -> Tensor:
        """Which columns [tokens, rank] belong to another adapter than the token's."""
        key = (layer.split, layer.a.device)
        mask = self.masks.get(key)
        if mask is None:
            owners = self.stack.splits[layer.split]
            mask = (self.places[:, None] != owners[None, :]).to(layer.a.device)
            self.masks[key] = mask
        return mask


class LoraBank:
    """Adapters over one model. `observe` the model's probe, then `begin` each step."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.targets: Mapping[str, tuple[int, int]] = {}
        self._modules = linear_modules(model)
        self._sites: dict[str, _Site] = {}
        self._source: AdapterSource | None = None
        self._stacks: OrderedDict[frozenset[str], _Stack] = OrderedDict()
        self._step: _Step | None = None
        self._hooked = False

    def observe(self, run: Callable[[], object], num_tokens: int) -> None:
        """Run a probe of so many tokens: targets are the modules that were given all of them.

        A module whose weight is used without calling it, or that sees some tokens only, would be
        adapted wrongly in silence.
        """
        calls: dict[str, list[int]] = {path: [] for path in self._modules}

        def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                if not isinstance(output, Tensor):
                    return  # a router answers with a tuple; it is no target
                calls[path].append(inputs[0].shape[:-1].numel() if inputs else 0)
                self._sites[path] = _Site(module, output.dtype, output.device)

            return hook

        handles = [m.register_forward_hook(watch(path)) for path, m in self._modules.items()]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        self._sites = {p: site for p, site in self._sites.items() if calls[p] == [num_tokens]}
        self.targets = {path: features_of(site.module) for path, site in self._sites.items()}

    def use(self, source: AdapterSource) -> None:
        """Say where weights come from."""
        self._source = source

    @property
    def is_used(self) -> bool:
        """Whether the step that has begun has a row with an adapter."""
        return self._step is not None

    def begin(self, chunks: Sequence[Chunk]) -> None:
        """Get ready for a step; a step without adapters costs nothing more than this."""
        digests = [_digest(chunk) for chunk in chunks]
        wanted = frozenset(digest for digest in digests if digest is not None)
        self._step = None
        if not wanted:
            return
        stack = self._stack(wanted)
        places = [stack.places.get(digest or "", -1) for digest in digests]
        counts = torch.tensor([chunk.num_tokens for chunk in chunks])
        self._step = _Step(stack, torch.tensor(places).repeat_interleave(counts))
        self._install()

    def _stack(self, wanted: frozenset[str]) -> _Stack:
        """A stack with these adapters, and perhaps a few more: requests come and go one by one."""
        large = [key for key in self._stacks if wanted <= key]
        best = min(large, key=len, default=None)
        if best is not None and len(best) <= _MAX_EXCESS * len(wanted):
            self._stacks.move_to_end(best)
            return self._stacks[best]
        if self._source is None:
            raise RuntimeError("a batch names an adapter, but nobody said where adapters are")
        adapters = {digest: self._source.weights(digest) for digest in sorted(wanted)}
        stack = self._stacks[wanted] = _stacked(adapters, self._sites)
        if len(self._stacks) > _MAX_STACKS:
            self._stacks.popitem(last=False)
        return stack

    def _install(self) -> None:
        if self._hooked:
            return
        self._hooked = True
        for path, site in self._sites.items():
            site.module.register_forward_hook(self._hook(path))

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def add(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            step = self._step
            layer = None if step is None else step.stack.layers.get(path)
            if step is None or layer is None:
                return None
            x: Tensor = inputs[0].to(layer.a.dtype).flatten(0, -2)
            part = (x @ layer.a).masked_fill_(step.foreign(layer), 0)
            return output + (part @ layer.b).view_as(output)

        return add


def _digest(chunk: Chunk) -> str | None:
    adapter = chunk.seq.request.adapter
    return None if adapter is None else adapter.digest


def _stacked(adapters: Mapping[str, LoraWeights], sites: Mapping[str, _Site]) -> _Stack:
    """Put adapters side by side, module by module."""
    splits: dict[tuple[int, ...], int] = {}
    layers: dict[str, _Layer] = {}
    for path, site in sites.items():
        found = [(i, *w.layers[path]) for i, w in enumerate(adapters.values()) if path in w.layers]
        if not found:
            continue
        owners = tuple(i for i, a, _ in found for _ in range(a.shape[0]))
        layers[path] = _Layer(
            a=torch.cat([a for _, a, _ in found]).T.contiguous().to(site.device, site.dtype),
            b=torch.cat([b for _, _, b in found], dim=1).T.contiguous().to(site.device, site.dtype),
            split=splits.setdefault(owners, len(splits)),
        )
    places = {digest: place for place, digest in enumerate(adapters)}
    return _Stack(places, tuple(torch.tensor(owners) for owners in splits), layers)
