"""A transformers decoder cut off after its first layers, made of the same modules.

The layers keep their numbers, so they read and write the keys and values of the whole model.
"""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from greenllm.model.info import LoadError

M = TypeVar("M", bound=nn.Module)


def first_layers(model: PreTrainedModel, count: int, num_layers: int) -> PreTrainedModel:
    """The model without the layers after the first `count`; final norm and head stay.

    Raises:
        LoadError: there are no such layers, or they cannot be told from the rest.
    """
    if not 1 <= count < num_layers:
        raise LoadError(f"no early exit after layer {count}: it must be in [1, {num_layers - 1}]")
    kind = type(model).__name__
    path = path_of_layers(model, num_layers)
    if path is None:
        raise LoadError(f"{kind} cannot be left early: its layers are not in one list")
    parents = [".".join(path[:depth]) for depth in range(len(path))]
    if any("forward" in vars(model.get_submodule(parent)) for parent in parents):
        # Hooks that move tensors between devices hold on to the whole model.
        raise LoadError(f"{kind} cannot be left early: it is spread over several devices")
    layers = model.get_submodule(".".join(path))
    return _with(model, path, nn.ModuleList(list(layers.children())[:count]))


def path_of_layers(model: nn.Module, num_layers: int) -> list[str] | None:
    """Where the only list of so many modules is that is not within another such list."""
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    outer = [p for p in paths if not any(p.startswith(f"{other}.") for other in paths)]
    return outer[0].split(".") if len(outer) == 1 else None


def _with(module: M, path: list[str], child: nn.Module) -> M:
    """A copy that shares everything but what is at a path below it."""
    first, *rest = path
    twin = copy.copy(module)
    inner = _with(module.get_submodule(first), rest, child) if rest else child
    vars(twin)["_modules"] = {**vars(module)["_modules"], first: inner}
    return twin
