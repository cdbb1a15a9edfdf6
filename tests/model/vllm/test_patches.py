"""What stands in for vLLM's own functions, by itself; that it is used is for the contract tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from greenllm.vllm.patches import in_place_of, leaving_a_weight, repeated, sparing_nothing


def test_each_sequences_value_is_repeated_for_its_tokens() -> None:
    counted = torch.tensor([2, 2, 5], dtype=torch.int32)
    found = repeated(torch.tensor([0.5, 1.0, 1.5]), counted, 5)
    assert found.tolist() == [0.5, 0.5, 1.5, 1.5, 1.5]
    assert found.dtype == torch.float32


def test_a_value_is_replaced_on_the_way() -> None:
    counted = torch.tensor([1, 3], dtype=torch.int32)
    found = repeated(torch.tensor([-1.0, 0.7]), counted, 3, replace_from=-1, replace_to=1)
    assert found.tolist() == pytest.approx([1.0, 0.7, 0.7])


def test_nothing_to_constrain_is_left_alone() -> None:
    constrain = sparing_nothing(lambda logits, k: logits * k.max())
    empty = torch.empty(0, 4)
    assert constrain(empty, torch.empty(0)) is empty
    assert constrain(torch.ones(1, 2), torch.tensor([3.0])).tolist() == [[3.0, 3.0]]


def test_another_function_than_the_known_one_is_not_replaced() -> None:
    def other(x: object, start: object) -> object:
        return x, start

    assert in_place_of(repeated, repeated) is repeated
    with pytest.raises(TypeError, match="other takes"):
        in_place_of(other, repeated)


def test_a_weight_that_is_taken_away_leaves_an_empty_one() -> None:
    def take(kernel: Any, layer: Any) -> None:
        layer.weight = None

    layer = torch.nn.Linear(2, 3)
    leaving_a_weight(take)(SimpleNamespace(layer_param_names=("weight", "scale")), layer)
    assert (layer.weight.numel(), layer.weight.device.type) == (0, "cpu")
    kept = torch.nn.Linear(2, 3)
    weight = kept.weight
    leaving_a_weight(lambda kernel, layer: None)(
        SimpleNamespace(layer_param_names=("weight", "scale")), kept
    )
    assert kept.weight is weight
