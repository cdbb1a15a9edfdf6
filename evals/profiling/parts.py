"""The parts of a decoder: embedding, attention, MLP and norms of every layer, final norm, head.

Contract: every parameter of the model lies in exactly one part, but for a head that is tied to the
embedding; every matrix is a linear layer or an embedding. Models for which that cannot be so are
refused. Residuals, rotary positions and masks have no module with parameters: they are in no part.

Not covered, and refused: mixtures of experts, matrices beside the layers, layers without a module
for their attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evals.profiling.counts import Kind
from greenllm.core import GreenllmError
from greenllm.model.loader import stored_bytes
from greenllm.runner.early_exit import path_of_layers


class ProfileError(GreenllmError):
    """A model cannot be profiled; the message says which and why."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Modules that are looked at together; `layer` is None outside of the decoder layers."""

    kind: Kind
    layer: int | None
    modules: tuple[nn.Module, ...]
    weight_bytes: int

    @property
    def leaves(self) -> Iterator[nn.Module]:
        """The modules without any below them."""
        for top in self.modules:
            yield from (m for m in top.modules() if next(m.children(), None) is None)


def find_parts(model: PreTrainedModel, num_layers: int) -> list[Part]:
    """The parts in the order in which they run.

    Ask before the first step: see `stored_bytes`.

    Raises:
        ProfileError: the model is made in another way.
    """
    kind = type(model).__name__
    path = path_of_layers(model, num_layers)
    if path is None:
        raise ProfileError(f"{kind} cannot be profiled: its layers are not in one list")
    decoder = model.get_submodule(".".join(path[:-1]))
    layers = model.get_submodule(".".join(path))
    beside = [child for child in decoder.children() if child is not layers]
    embeddings = [child for child in beside if isinstance(child, nn.Embedding)]
    norms = [m for m in beside if m not in embeddings and _is_norm(m)]
    # Only the rows that a step looks up are read, see `observe`.
    parts = [Part("embedding", None, tuple(embeddings), 0)]
    for number, layer in enumerate(layers.children()):
        parts += _parts_of_layer(kind, number, layer)
    parts.append(_part("final norm", None, norms))
    head = model.get_output_embeddings()
    parts.append(_part("head", None, [] if head is None else [head]))
    _require_whole(kind, model, parts)
    return parts


def matrix_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Input and output width of a linear layer, quantized or not; None of everything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return None


def _parts_of_layer(kind: str, number: int, layer: nn.Module) -> list[Part]:
    found: dict[Kind, list[nn.Module]] = {"norms": [], "attention": [], "MLP": []}
    for name, child in layer.named_children():
        found[_kind_of(name, child)].append(child)
    if len(found["attention"]) != 1:
        raise ProfileError(f"{kind} cannot be profiled: layer {number} is not one attention")
    return [_part(part, number, modules) for part, modules in found.items() if modules]


def _kind_of(name: str, child: nn.Module) -> Kind:
    if _has_no_matrix(child):
        return "norms"
    return "attention" if "att" in name.lower() else "MLP"


def _is_norm(child: nn.Module) -> bool:
    """Rotary positions have no parameters."""
    return _has_no_matrix(child) and next(child.parameters(), None) is not None


def _has_no_matrix(child: nn.Module) -> bool:
    return all(matrix_sizes(module) is None for module in child.modules())


def _part(kind: Kind, layer: int | None, modules: list[nn.Module]) -> Part:
    tensors = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    return Part(kind, layer, tuple(modules), stored_bytes(tensors.values()))


def _require_whole(kind: str, model: nn.Module, parts: list[Part]) -> None:
    held = {id(p) for part in parts for m in part.modules for p in m.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in held:
            raise ProfileError(f"{kind} cannot be profiled: {name} is in none of its parts")
    for name, module in model.named_modules():
        is_known = isinstance(module, nn.Embedding) or matrix_sizes(module) is not None
        if not is_known and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            raise ProfileError(f"{kind} cannot be profiled: {name} is no linear layer")
