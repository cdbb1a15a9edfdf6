"""Quantized matrices on disk, so that a second start need not quantize again.

One safetensors file per model, options and version of the format; its name is a digest of them.
Written to a temporary file and renamed, so a killed process leaves no half file. A cache that
cannot be read or written costs time, never a start.

Not covered: limits on the folder's size.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from greenllm.model.quantize import Bits, Floats, QuantizedMatrix, quantize

log = logging.getLogger(__name__)

FORMAT = "1"


def cache_file(folder: Path, weights_digest: str, bits: Bits) -> Path:
    """Where the quantized form of these weights belongs."""
    key = hashlib.sha256(f"{FORMAT}:{bits}:{weights_digest}".encode()).hexdigest()[:32]
    return folder / "weights" / f"{key}.safetensors"


class QuantizedWeights:
    """Matrices by name: from the cache file when it is whole, else quantized now and kept.

    `save` writes what had to be quantized.
    """

    def __init__(self, path: Path | None, bits: Bits) -> None:
        self._path = path
        self._bits = bits
        self._fresh: dict[str, QuantizedMatrix] = {}
        self._cached = _read(path)

    @property
    def was_cached(self) -> bool:
        """Whether everything asked for so far came from the disk."""
        return not self._fresh

    def get(
        self, name: str, make: Callable[[], Floats], bits: Bits | None = None
    ) -> QuantizedMatrix:
        """The quantized matrix of that name; `make` reads the floating point one if needed."""
        found = self._cached.get(name)
        if found is None:
            found = self._fresh[name] = quantize(make(), bits or self._bits)
        return found

    def save(self) -> None:
        """Write the cache file, unless there is nothing new or nowhere to write."""
        if self._path is None or not self._fresh:
            return
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, matrix in {**self._cached, **self._fresh}.items():
            arrays[f"{name}:integers"] = matrix.integers
            arrays[f"{name}:scales"] = matrix.scales
        scratch = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save_file(arrays, scratch)
            scratch.replace(self._path)
        except (OSError, SafetensorError) as error:
            log.warning("quantized weights were not cached in %s: %s", self._path.parent, error)
            scratch.unlink(missing_ok=True)


def _read(path: Path | None) -> dict[str, QuantizedMatrix]:
    if path is None or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="np") as file:
            names = sorted({key.rpartition(":")[0] for key in file.keys()})  # noqa: SIM118
            return {name: _matrix(file, name) for name in names}
    except (OSError, SafetensorError, ValueError) as error:
        log.warning("the cached weights %s cannot be read, quantizing again: %s", path, error)
        return {}


def _matrix(file: safe_open, name: str) -> QuantizedMatrix:
    integers = file.get_tensor(f"{name}:integers")  # type: ignore[no-untyped-call]
    scales = file.get_tensor(f"{name}:scales")  # type: ignore[no-untyped-call]
    if integers.dtype == np.int8:
        return QuantizedMatrix(8, integers.shape, integers, scales)
    rows, groups, half = integers.shape
    return QuantizedMatrix(4, (rows, groups * half * 2), integers, scales)
