"""The parts of a decoder: embedding, attention, MLP and norms of every layer, final norm, head.

Contract: every parameter of the model lies in exactly one part, but for a head that is tied to the
embedding; every matrix is a linear layer or an embedding. Models for which that cannot be so are
refused. Residuals, rotary positions and masks have no module with parameters: they are in no part.

Not covered, and refused: mixtures of experts, matrices beside the layers, layers without a module
for their attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evals.profiling.profile import Kind
from greenllm.core import GreenllmError
from greenllm.model.loader import stored_bytes
from greenllm.runner.early_exit import path_of_layers

# Linear layers, quantized or not.
_MATRICES = (nn.Linear, Conv1D)


class ProfileError(GreenllmError):
    """A model cannot be profiled; the message says which and why."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Modules by their paths that are looked at together; `layer` is None outside of the layers."""

    kind: Kind
    layer: int | None
    modules: Mapping[str, nn.Module]
    weight_bytes: int

    @property
    def leaves(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules without any below them."""
        for path, top in self.modules.items():
            for name, module in top.named_modules(prefix=path):
                if next(module.children(), None) is None:
                    yield name, module


def find_parts(model: PreTrainedModel, num_layers: int) -> list[Part]:
    """The parts in the order in which they run.

    Ask before the first step: see `stored_bytes`.

    Raises:
        ProfileError: the model is made in another way.
    """
    path = path_of_layers(model, num_layers)
    if path is None:
        raise _refusal(model, "its layers are not in one list")
    paths = {module: name for name, module in model.named_modules()}

    def part(kind: Kind, layer: int | None, modules: Iterable[nn.Module]) -> Part:
        named = {paths[module]: module for module in modules}
        tensors = {id(t): t for m in named.values() for t in (*m.parameters(), *m.buffers())}
        # Of embeddings only the rows that a step looks up are read, see `counts`.
        stored = 0 if kind == "embedding" else stored_bytes(tensors.values())
        return Part(kind, layer, named, stored)

    layers = model.get_submodule(".".join(path))
    beside = [m for m in model.get_submodule(".".join(path[:-1])).children() if m is not layers]
    head = model.get_output_embeddings()
    parts = [part("embedding", None, (m for m in beside if isinstance(m, nn.Embedding)))]
    for number, layer in enumerate(layers.children()):
        kinds = _kinds_of(layer)
        if len(kinds["attention"]) != 1:
            raise _refusal(model, f"layer {number} is not one attention")
        parts += [part(kind, number, modules) for kind, modules in kinds.items() if modules]
    parts.append(part("final norm", None, filter(_is_norm, beside)))
    parts.append(part("head", None, [] if head is None else [head]))
    _require_whole(model, parts)
    return parts


def _refusal(model: nn.Module, reason: str) -> ProfileError:
    return ProfileError(f"{type(model).__name__} cannot be profiled: {reason}")


def _kinds_of(layer: nn.Module) -> dict[Kind, list[nn.Module]]:
    found: dict[Kind, list[nn.Module]] = {"norms": [], "attention": [], "MLP": []}
    for name, child in layer.named_children():
        is_attention = "att" in name.lower()
        kind: Kind = "attention" if is_attention else "MLP"
        found["norms" if _has_no_matrix(child) else kind].append(child)
    return found


def _is_norm(child: nn.Module) -> bool:
    """Rotary positions have no parameters."""
    has_parameters = next(child.parameters(), None) is not None
    return has_parameters and _has_no_matrix(child) and not isinstance(child, nn.Embedding)


def _has_no_matrix(child: nn.Module) -> bool:
    return not any(isinstance(module, _MATRICES) for module in child.modules())


def _require_whole(model: nn.Module, parts: list[Part]) -> None:
    held = {id(p) for part in parts for m in part.modules.values() for p in m.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in held:
            raise _refusal(model, f"{name} is in none of its parts")
    for name, module in model.named_modules():
        is_known = isinstance(module, (nn.Embedding, *_MATRICES))
        if not is_known and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            raise _refusal(model, f"{name} is no linear layer")
