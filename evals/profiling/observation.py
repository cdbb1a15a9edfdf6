"""What the parts of a model compute and move in one real step, and PyTorch's count of the same.

Own counts take the rows of every linear layer and the bytes of every activation from the tensors
that pass through one step. PyTorch's counter runs the same step on the same modules without weights
(the meta device), where attention and quantized layers are plain products: it knows neither the
kernel for attention on CPUs nor those of bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from evals.profiling.config import ProfileConfig
from evals.profiling.counts import Counts, attention_counts, linear_flops
from evals.profiling.parts import Part, matrix_sizes
from evals.profiling.step import Step


def observe(parts: Sequence[Part], step: Step) -> list[Counts]:
    """Run one step and count, one for each part.

    Raises:
        ProfileError: see `Step.attention_shapes`.
    """
    seen = [_Seen(part.weight_bytes) for part in parts]
    step.prepare()
    past = step.past()
    with ExitStack() as stack:
        for part, counted in zip(parts, seen, strict=True):
            for leaf in part.leaves:
                handle = leaf.register_forward_hook(counted.look, with_kwargs=True)
                stack.callback(handle.remove)
        step.run()
    shapes = step.attention_shapes(past)
    return [
        counted.counts + attention_counts(shapes[part.layer])
        if part.kind == "attention" and part.layer is not None
        else counted.counts
        for part, counted in zip(parts, seen, strict=True)
    ]


def counter_flops(twin: PreTrainedModel, config: ProfileConfig) -> int | None:
    """FLOPs of the step by PyTorch's counter; `twin` is the model without weights.

    None where a model cannot run without numbers.
    """
    try:
        step = Step(twin, config)
        step.prepare()
        with FlopCounterMode(display=False) as counter:
            step.run()
    except RuntimeError:
        return None
    flops: int = counter.get_total_flops()
    return flops


class _Seen:
    """Counts of one part while a step runs."""

    def __init__(self, weight_bytes: int) -> None:
        self.counts = Counts(weight_bytes=weight_bytes)

    def look(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Count one call of a module."""
        moved_bytes = sum(tensor.nbytes for tensor in _tensors([*args, *kwargs.values(), output]))
        self.counts += Counts(activation_bytes=moved_bytes)
        sizes = matrix_sizes(module)
        if sizes is not None:
            self.counts += Counts(flops=linear_flops(output.numel() // sizes[1], *sizes))
        elif isinstance(module, nn.Embedding):  # the rows that are looked up, not the table
            rows_bytes = output.numel() * module.weight.element_size()
            self.counts += Counts(weight_bytes=rows_bytes)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
