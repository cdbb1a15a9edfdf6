"""Counts what the parts of a model have to compute and to move in one step.

Contract: FLOPs are PyTorch's own count (`torch.utils.flop_counter`), module by module: matrix
products, two for each multiplication with its addition. They are counted on the modules without
weights, where attention and quantized layers are plain products, which the counter knows.
Attention is counted over all keys that its kernel is given; `masked_flops` of them fall on keys
that causality hides, which kernels may skip and some do.

Bytes are what the step cannot do without, moved once: weights as they are stored (of embeddings
the rows that are looked up; a head that is tied to them reads the whole table), keys and values,
and what goes into and out of every module that has none below it.

Not counted: norms, activations, rotary positions, softmax and sampling in FLOPs; caches of the
processor, copies (keys and values that are put together or repeated, weights written out by
dequantizing) and what attention keeps in between in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from evals.profiling.config import ProfileConfig
from evals.profiling.parts import Part
from evals.profiling.profile import Counts
from evals.profiling.step import AttentionStep, Step


def count(parts: Sequence[Part], step: Step, flops: Mapping[str, int]) -> list[Counts]:
    """Run one step and count, one for each part; `flops` are those of the modules by path.

    Raises:
        ProfileError: layers share keys and values.
    """
    found = [
        Counts(sum(flops.get(path, 0) for path in part.modules), weight_bytes=part.weight_bytes)
        for part in parts
    ]
    step.prepare()
    past = step.past()
    with ExitStack() as stack:
        for place, part in enumerate(parts):
            for _, leaf in part.leaves:
                hook = leaf.register_forward_hook(_look(found, place), with_kwargs=True)
                stack.callback(hook.remove)
        step.run()
    layers = step.attention(past)
    for place, part in enumerate(parts):
        if part.kind == "attention" and part.layer is not None:
            found[place] += _attention(part, layers[part.layer], flops)
    return found


def _look(found: list[Counts], place: int) -> Callable[..., None]:
    """A hook that adds the bytes of one call of a module."""

    def look(
        module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        moved = sum(tensor.nbytes for tensor in _tensors([*args, *kwargs.values(), output]))
        # Of an embedding the rows that are looked up, not the table.
        rows = 0
        if isinstance(module, nn.Embedding):
            rows = output.numel() * module.weight.element_size()
        found[place] += Counts(weight_bytes=rows, activation_bytes=moved)

    return look


def flops_by_module(
    model: PreTrainedModel, twin: PreTrainedModel, config: ProfileConfig
) -> dict[str, int]:
    """PyTorch's count of the step by the path of each module; `twin` is the model without weights.

    A model that cannot run without numbers is counted itself.
    """
    try:
        return _flops(twin, config)
    except RuntimeError:
        return _flops(model, config)


def _flops(model: PreTrainedModel, config: ProfileConfig) -> dict[str, int]:
    step = Step(model, config)
    step.prepare()
    # The counter does not know all of the fused kernels for attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.run()
    found = counter.get_flop_counts()
    return {name.partition(".")[2]: sum(flops.values()) for name, flops in found.items()}


def _attention(part: Part, layer: AttentionStep, flops: Mapping[str, int]) -> Counts:
    """Keys and values, and what masks hide of products with them: those below no linear layer."""
    paths, leaves = part.modules, [path for path, _ in part.leaves]
    products = sum(flops.get(p, 0) for p in paths) - sum(flops.get(p, 0) for p in leaves)
    masked_flops = products * layer.hidden_pairs // layer.pairs
    return Counts(masked_flops=masked_flops, kv_bytes=layer.kv_bytes)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
