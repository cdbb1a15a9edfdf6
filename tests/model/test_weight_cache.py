"""Quantized weights: in parts as in whole, views of their file, and in memory where none can be."""

from __future__ import annotations

import mmap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from greenllm.model import weight_cache
from greenllm.model.info import LoadError
from greenllm.model.quantize import Bits, QuantizedMatrix, quantize
from greenllm.model.weight_cache import QuantizedWeights, Wanted

SHAPES = {"a": (70, 64), "b": (33, 96), "odd": (5, 7)}
Make = Callable[..., QuantizedWeights]


def _tensor(wanted: Wanted) -> torch.Tensor:
    source = torch.Generator().manual_seed(len(wanted.tensor))
    return torch.randn(wanted.shape, generator=source).to(torch.bfloat16)


def _weights(path: Path | None, bits: Bits, read: Any = _tensor) -> QuantizedWeights:
    return QuantizedWeights(path, {n: Wanted(n, shape, bits) for n, shape in SHAPES.items()}, read)


def _must_not_read(_: Wanted) -> torch.Tensor:
    raise AssertionError("the checkpoint was read")


def _same(ours: QuantizedMatrix, expected: QuantizedMatrix) -> bool:
    return (
        (ours.bits, ours.shape) == (expected.bits, expected.shape)
        and np.array_equal(ours.integers, expected.integers)
        and np.array_equal(ours.scales, expected.scales)
    )


def _owner(array: Any) -> Any:
    """What an array's memory belongs to."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("cached", [True, False])
def test_parts_and_files_change_nothing(
    bits: Bits, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_cache, "_NUMBERS_AT_ONCE", 700)
    path = tmp_path / "sub" / "weights.safetensors" if cached else None
    found = _weights(path, bits)
    for name, shape in SHAPES.items():
        whole = quantize(_tensor(Wanted(name, shape, bits)).float().numpy(), bits)
        assert _same(found[name], whole)
        assert Wanted(name, shape, bits).num_bytes == whole.num_bytes
    assert not found.was_cached


@pytest.mark.parametrize("bits", [8, 4])
def test_what_was_written_is_not_held_in_memory(bits: Bits, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tracemalloc.start()
    try:
        first = _weights(path, bits)
        size = sum(first[name].num_bytes for name in SHAPES)
        held = sum(
            trace.size
            for trace in tracemalloc.take_snapshot().traces
            if trace.domain == np.lib.tracemalloc_domain
        )
    finally:
        tracemalloc.stop()
    assert held == 0 < size
    for weights in (first, _weights(path, bits, _must_not_read)):
        for name in SHAPES:
            assert isinstance(_owner(weights[name].integers), mmap.mmap)
            assert isinstance(_owner(weights[name].scales), mmap.mmap)
            assert _same(weights[name], first[name])
    assert len(load_file(path)) == 2 * len(SHAPES)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_what_is_done_to_a_view_does_not_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    written = _weights(path, 8)
    written["a"].integers[0] += 1
    assert _same(_weights(path, 8, _must_not_read)["b"], written["b"])
    assert not _same(_weights(path, 8, _must_not_read)["a"], written["a"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:8] + b"[" + content[9:],
        lambda content: content.replace(b"odd", b"add"),
        lambda content: b"\xff" * 8 + content[8:],
    ],
    ids=["empty", "short", "long", "no JSON", "other names", "huge header"],
)
def test_a_file_of_something_else_is_replaced(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.safetensors"
    expected = _weights(path, 4)["a"]
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(whole))
    again = _weights(path, 4)
    assert _same(again["a"], expected)
    assert not again.was_cached
    assert "cannot be read" in caplog.text
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_memory_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    found = _weights(tmp_path / "file" / "weights.safetensors", 8)
    assert _same(found["a"], _weights(None, 8)["a"])
    assert "were not cached" in caplog.text


def test_a_checkpoint_that_cannot_be_read_leaves_no_half_file(tmp_path: Path) -> None:
    def broken(wanted: Wanted) -> torch.Tensor:
        if wanted.tensor == "b":
            raise LoadError("the weights lack b")
        return _tensor(wanted)

    with pytest.raises(LoadError):
        _weights(tmp_path / "weights.safetensors", 8, broken)["a"]
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_costs_memory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_cache, "_write_header", full)
    found = _weights(tmp_path / "weights.safetensors", 8)
    assert _same(found["a"], _weights(None, 8)["a"])
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())
