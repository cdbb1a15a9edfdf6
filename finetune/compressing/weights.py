"""Two ways to say less with the same matrices: zeros, and two factors of a low rank.

Zeros are multiplied like other numbers by the kernels that serve here, and factors are two products
instead of one; whether that saves anything is measured, not assumed.

Source: truncated singular value decomposition, Eckart and Young (1936); zeros by magnitude, Han et
al., arXiv:1506.02626. Not covered: zeros in patterns that hardware skips (2:4), embeddings, heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finetune.compressing.importance import layers_of


def matrices_of(model: Any) -> dict[str, nn.Linear]:
    """The linear modules inside the layers, by name."""
    return {
        name: module
        for name, module in layers_of(model).named_modules()
        if isinstance(module, nn.Linear)
    }


@torch.no_grad()
def zero_smallest(model: Any, share: float) -> float:
    """Zero that share of every matrix in place; returns the share that is zero then."""
    zeros = total = 0
    for module in matrices_of(model).values():
        weight = module.weight
        count = int(share * weight.numel())
        if count:
            smallest = torch.topk(weight.abs().flatten(), count, largest=False).indices
            weight.view(-1)[smallest] = 0
        zeros += int((weight == 0).sum())
        total += weight.numel()
    return zeros / total


@torch.no_grad()
def factorize(model: Any, share: float) -> int:
    """Put two factors in place of every matrix, of so many of its parameters; returns how many.

    A matrix whose rank would be 0 stays.
    """
    layers, changed = layers_of(model), 0
    for name, module in matrices_of(model).items():
        rows, columns = module.weight.shape
        rank = min(rows, columns, int(share * rows * columns / (rows + columns)))
        if rank:
            parent, _, last = name.rpartition(".")
            setattr(layers.get_submodule(parent), last, _factors(module, rank))
            changed += 1
    return changed


def _factors(module: nn.Linear, rank: int) -> nn.Sequential:
    left, values, right = torch.linalg.svd(module.weight.float(), full_matrices=False)
    first = nn.Linear(module.in_features, rank, bias=False)
    second = nn.Linear(rank, module.out_features, bias=module.bias is not None)
    root = values[:rank].sqrt()
    first.weight.copy_(root[:, None] * right[:rank])
    second.weight.copy_(left[:, :rank] * root)
    if module.bias is not None:
        second.bias.copy_(module.bias)
    return nn.Sequential(first, second).to(module.weight.device, module.weight.dtype)
