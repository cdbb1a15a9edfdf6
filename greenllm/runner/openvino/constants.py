"""A decoder's weights as constants: each is made once, and shared by all graphs that use it.

Graphs built from one `Constants` hold its nodes, so they must be built and compiled one at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from openvino import Output, Type, opset13

from greenllm.model.decoder_weights import DecoderWeights, Matrix
from greenllm.model.quantize import Floats
from greenllm.model.spec import DecoderSpec
from greenllm.runner.openvino.nodes import StoredMatrix, side_by_side, stored

Modules = tuple[tuple[str, int], ...]


class Constants:
    """Weights by role; `floats` is how unquantized matrices are stored."""

    def __init__(self, weights: DecoderWeights, floats: Type) -> None:
        self.spec: DecoderSpec = weights.spec
        self._weights = weights
        self._floats = floats
        self._matrices: dict[str, StoredMatrix] = {}
        self._vectors: dict[str, Output] = {}

    def projection(self, layer: int, modules: Modules) -> StoredMatrix:
        """Modules of a layer side by side."""
        names = [name for name, _ in modules]

        def make() -> Matrix:
            return side_by_side([self._weights.module(layer, name) for name in names])

        return self._matrix(f"{layer}.{'+'.join(names)}", make)

    def bias(self, layer: int, modules: Modules) -> Output | None:
        """Biases of modules side by side; None when the model has none there."""
        values = self._weights.bias(layer, modules)
        if values is None:
            return None
        names = "+".join(name for name, _ in modules)
        return self._vector(f"{layer}.{names}.bias", values[None])

    def norm(self, name: str) -> Output:
        """Scale of an RMS norm, such as `model.norm`."""
        return self._vector(name, self._weights.norm(name))

    def table(self) -> StoredMatrix:
        """The token table."""
        return self._matrix("table", self._weights.embedding)

    def head(self) -> StoredMatrix:
        """The output matrix; the token table when tied."""
        return self.table() if self.spec.tied else self._matrix("head", self._weights.head)

    def _matrix(self, key: str, make: Callable[[], Matrix]) -> StoredMatrix:
        if key not in self._matrices:
            self._matrices[key] = stored(make(), self._floats)
        return self._matrices[key]

    def _vector(self, key: str, values: Floats) -> Output:
        if key not in self._vectors:
            self._vectors[key] = opset13.constant(values).output(0)
        return self._vectors[key]
