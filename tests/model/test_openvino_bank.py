"""The bank of adapters on OpenVINO: as large as steps need, whole after every error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from openvino import Type

from greenllm.model.lora import LoraWeights
from greenllm.model.spec import DecoderSpec, spec_of
from greenllm.runner.openvino import lora
from greenllm.runner.openvino.lora import LoraBank

LOOK_EVERY = 4


@pytest.fixture
def spec(tiny: str) -> DecoderSpec:
    return spec_of(json.loads((Path(tiny) / "config.json").read_text()))


@pytest.fixture
def bank(spec: DecoderSpec, monkeypatch: pytest.MonkeyPatch) -> LoraBank:
    monkeypatch.setattr(lora, "_LOOK_EVERY", LOOK_EVERY)
    return LoraBank(spec, frozenset(p.group for p in spec.projections), Type.bf16)


def adapter(spec: DecoderSpec, digest: str) -> LoraWeights:
    """`a3`: an adapter of rank 3."""
    rank = int(digest[1:])
    torch.manual_seed(rank)
    layers = {
        path: (torch.randn(rank, width), torch.randn(out, rank))
        for path, (width, out) in spec.lora_targets.items()
    }
    return LoraWeights(digest, rank, 0, 0, layers)


def place(bank: LoraBank, digests: Sequence[str], times: int = 1) -> None:
    for _ in range(times):
        placed = bank.place(digests, lambda digest: adapter(bank.spec, digest))
        assert sorted(placed.slots) == sorted(digests)
        assert sorted(set(placed.slots.values())) == sorted(placed.slots.values())


def test_it_shrinks_to_what_steps_need(bank: LoraBank, spec: DecoderSpec) -> None:
    place(bank, ["a1", "a2", "a3", "a4", "b1"])
    large = bank.num_bytes
    assert (bank.num_slots, bank.rank) == (8, 4)
    place(bank, ["a4"], 3 * LOOK_EVERY)
    assert (bank.num_slots, bank.rank, bank.num_bytes) == (1, 4, large // 8)
    fresh = LoraBank(spec, bank.groups, bank.kind)
    place(fresh, ["a4"])
    assert bank.arrays.keys() == fresh.arrays.keys()
    assert all(torch.equal(array, fresh.arrays[name]) for name, array in bank.arrays.items())


def test_it_shrinks_after_an_adapter_of_high_rank(bank: LoraBank) -> None:
    place(bank, ["a64"])
    place(bank, ["a2", "b2"], 3 * LOOK_EVERY)
    assert (bank.num_slots, bank.rank) == (2, 2)


@pytest.mark.parametrize("rare", [["a2", "b2", "c2", "d2"], ["a8"], ["a4", "b4"]])
def test_it_stays_while_some_step_needs_it(bank: LoraBank, rare: list[str]) -> None:
    for _ in range(5):
        place(bank, rare)
        place(bank, ["a2"], LOOK_EVERY - 1)
    assert bank.generation == 1


def test_it_stays_when_little_would_be_gained(bank: LoraBank) -> None:
    place(bank, ["a2", "b2"])
    place(bank, ["a2"], 3 * LOOK_EVERY)
    assert bank.generation == 1


def test_it_is_as_it_was_after_memory_ran_out(
    bank: LoraBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(bank, ["a2"])
    before = (dict(bank.arrays), bank.rank, bank.num_slots, bank.generation)
    zeros, calls = torch.zeros, iter([True, True])

    def scarce(*size: int, **options: Any) -> torch.Tensor:
        if next(calls, False):
            return zeros(*size, **options)
        raise MemoryError

    monkeypatch.setattr(torch, "zeros", scarce)
    with pytest.raises(MemoryError):
        place(bank, ["a2", "b3"])
    assert (bank.rank, bank.num_slots, bank.generation) == before[1:]
    assert all(bank.arrays[name] is array for name, array in before[0].items())
    place(bank, ["b2"])
