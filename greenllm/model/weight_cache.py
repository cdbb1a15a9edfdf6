"""Quantized matrices in a file: a second start need not quantize, and no start holds them twice.

One safetensors file per model, recipe and version of the format; its name is a digest of them.
Matrices are quantized one at a time into a temporary file, which is renamed when it is whole, so a
killed process leaves no half file. From then on they are views of the file: the system may take
their memory back and read them again. A cache that cannot be read or written costs time and memory,
never a start.

Not covered: limits on the folder's size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from greenllm.model.quantize import Bits, Floats, QuantizedMatrix, group_of, quantize_parts, recipe

log = logging.getLogger(__name__)

FORMAT = "2"
_ALIGNMENT = 64
_NUMBERS_AT_ONCE = 1 << 18
_TYPES = {"I8": np.int8, "U8": np.uint8, "F32": np.float32}
_Arrays = dict[str, NDArray[Any]]
_Header = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tensor of the checkpoint, its shape, and the bits to quantize it to where a group fits."""

    tensor: str
    shape: tuple[int, int]
    bits: Bits

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of the arrays that make up a `QuantizedMatrix`."""
        rows, columns = self.shape
        group = group_of(columns) if self.bits == 4 else None
        if group is None:
            return {"integers": ("I8", (rows, columns)), "scales": ("F32", (rows, 1))}
        groups = columns // group
        return {
            "integers": ("U8", (rows, groups, group // 2)),
            "scales": ("F32", (rows, groups, 1)),
        }

    @property
    def num_bytes(self) -> int:
        """Bytes of integers and scales."""
        return sum(_num_bytes(kind, shape) for kind, shape in self.arrays.values())


def cache_file(folder: Path, weights_digest: str, bits: Bits) -> Path:
    """Where the quantized form of these weights belongs."""
    key = hashlib.sha256(f"{FORMAT}:{recipe(bits)}:{weights_digest}".encode()).hexdigest()[:32]
    return folder / "weights" / f"{key}.safetensors"


class QuantizedWeights:
    """Matrices by name, views of the cache file; without a `path` they are kept in memory.

    Nothing is read or quantized before the first matrix is asked for.
    """

    def __init__(
        self,
        path: Path | None,
        wanted: Mapping[str, Wanted],
        read: Callable[[Wanted], Tensor],
    ) -> None:
        self._path = path
        self._wanted = wanted
        self._read = read
        self._arrays: _Arrays | None = None
        self.was_cached = False

    def __getitem__(self, name: str) -> QuantizedMatrix:
        if self._arrays is None:
            self._arrays = self._all()
        wanted = self._wanted[name]
        integers, scales = (self._arrays[f"{name}:{part}"] for part in ("integers", "scales"))
        bits: Bits = 8 if integers.dtype == np.int8 else 4
        return QuantizedMatrix(bits, wanted.shape, integers, scales)

    def _all(self) -> _Arrays:
        header = _header(self._wanted)
        if self._path is not None:
            if self._path.is_file():
                cached = _mapped(self._path, header)
                self.was_cached = cached is not None
                if cached is not None:
                    return cached
            if self._write(self._path, header) and (cached := _mapped(self._path, header)):
                return cached
        return dict(self._quantized())

    def _quantized(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """The arrays of each matrix, one after the other."""
        for name, wanted in self._wanted.items():
            matrix = quantize_parts(_parts(self._read(wanted)), wanted.bits)
            yield f"{name}:integers", matrix.integers
            yield f"{name}:scales", matrix.scales

    def _write(self, path: Path, header: _Header) -> bool:
        """Quantize everything into the file; False, and a warning, when that fails."""
        scratch = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                start = _write_header(file, header)
                for name, array in self._quantized():
                    file.seek(start + header[name]["data_offsets"][0])
                    file.write(np.ascontiguousarray(array).data)
            scratch.replace(path)
        except OSError as error:
            log.warning("quantized weights were not cached in %s: %s", path.parent, error)
            return False
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
        return True


def _parts(matrix: Tensor) -> Iterator[Floats]:
    """Rows as float32, so many at a time that the copies stay small."""
    step = max(1, _NUMBERS_AT_ONCE // matrix.shape[1])
    for start in range(0, matrix.shape[0], step):
        values: Floats = matrix[start : start + step].float().numpy()
        yield values


def _num_bytes(kind: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(_TYPES[kind]).itemsize


def _header(wanted: Mapping[str, Wanted]) -> _Header:
    """What the file says of its arrays: scales first, so that all are aligned to their type."""
    header: _Header = {}
    end = 0
    for part in ("scales", "integers"):
        for name, matrix in wanted.items():
            kind, shape = matrix.arrays[part]
            begin, end = end, end + _num_bytes(kind, shape)
            header[f"{name}:{part}"] = {
                "dtype": kind,
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
    return header


def _write_header(file: BinaryIO, header: _Header) -> int:
    """Write it, padded as the format allows; returns where the arrays begin."""
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    return 8 + len(text)


def _mapped(path: Path, header: _Header) -> _Arrays | None:
    """Views of the file's arrays; None, and a warning, when it is not what it should be."""
    try:
        with path.open("rb") as file:
            # Copy on write: arrays are writeable, which OpenVINO wants, and the file is never hit.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 8 + int.from_bytes(content[:8], "little")
        size = max(array["data_offsets"][1] for array in header.values())
        if len(content) != start + size or json.loads(content[8:start]) != header:
            raise ValueError("it holds something else")
    except (OSError, ValueError) as error:
        log.warning("the cached weights %s cannot be read, quantizing again: %s", path, error)
        return None
    return {name: _array(content, start, array) for name, array in header.items()}


def _array(content: mmap.mmap, start: int, array: dict[str, Any]) -> NDArray[Any]:
    kind, shape = _TYPES[array["dtype"]], array["shape"]
    offset = start + array["data_offsets"][0]
    view: NDArray[Any] = np.frombuffer(content, kind, math.prod(shape), offset)
    return view.reshape(shape)
