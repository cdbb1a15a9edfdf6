"""Which modules of a transformers model an adapter may change.

Contract: linear maps that see every token of the sequence, each under its own path: not the head,
not embeddings, and not the experts of a mixture, which see only the tokens routed to them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from greenllm.model.loader import load_config, without_weights
from greenllm.model.options import LoadOptions, resolve


def linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Those modules by path; bitsandbytes' are subclasses of `nn.Linear`."""
    head = model.get_output_embeddings()
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not head
        and "experts" not in path.split(".")
    }


def features_of(module: nn.Module) -> tuple[int, int]:
    """Input and output features of a linear module."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    raise TypeError(f"{type(module).__name__} is not linear")


def targets_of(name: str, options: LoadOptions) -> Mapping[str, tuple[int, int]]:
    """Targets of a model, by its config alone.

    Raises:
        LoadError: there is no such model.
    """
    model = without_weights(load_config(resolve(name), options), options)
    return {path: features_of(module) for path, module in linear_modules(model).items()}
