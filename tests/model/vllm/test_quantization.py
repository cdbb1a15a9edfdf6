"""What is refused, and what is counted of layers that look like vLLM's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from greenllm.model.info import LoadError
from greenllm.options import EngineConfig
from greenllm.vllm import quantization
from greenllm.vllm.quantization import (
    Survey,
    check_quantization,
    dtype_for,
    quantization_values,
    survey,
    together,
)


class UnquantizedLinearMethod:
    """By this name vLLM calls what leaves a layer alone."""


class Int8Method:
    """Any other."""


class Linear(nn.Module):
    """A layer as vLLM makes them: what it is made of may be gone after loading."""

    input_size_per_partition, output_size_per_partition = 4, 6

    def __init__(self, weight: torch.Tensor | None, method: object) -> None:
        super().__init__()
        held = None if weight is None else nn.Parameter(weight, requires_grad=False)
        self.register_parameter("weight", held)
        self.quant_method = method


class Wrapped(nn.Module):
    """A layer within what adapters need, which has the layer's attributes."""

    input_size_per_partition, output_size_per_partition = 4, 6
    quant_method = UnquantizedLinearMethod()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer


def config(**values: Any) -> EngineConfig:
    return EngineConfig(engine="vllm", **values)


def test_weights_that_a_kernel_has_taken_are_counted() -> None:
    model = nn.ModuleDict(
        {
            "whole": Wrapped(Linear(torch.ones(6, 4), UnquantizedLinearMethod())),
            "taken": Linear(torch.ones(0, dtype=torch.bfloat16), UnquantizedLinearMethod()),
            "bytes": Linear(torch.ones(0, dtype=torch.int8), Int8Method()),
            "none": Linear(None, Int8Method()),
        }
    )
    found = survey(model)
    assert found.num_bytes == 24 * 4 + 24 * 2 + 24 + 24
    assert (found.num_quantized, found.kept) == (2, ("whole", "taken"))
    found.require_quantized("m")


def test_constants_beside_a_weight_are_counted() -> None:
    weight = nn.Parameter(torch.zeros(12, dtype=torch.uint8), requires_grad=False)
    inner = SimpleNamespace(absmax=torch.zeros(1), code=torch.zeros(256))
    state = SimpleNamespace(absmax=torch.zeros(8, dtype=torch.uint8), code=torch.zeros(16))
    state.state2 = inner
    layer = Linear(None, Int8Method())
    layer.weight = weight
    weight.bnb_quant_state = {0: state}  # type: ignore[attr-defined]
    assert survey(layer).num_bytes == 12 + 8 + 16 * 4 + 4 + 256 * 4


def test_parts_of_a_model_add_up_in_bytes_and_are_the_same_layers() -> None:
    parts = [Survey(100, 3, ("lm_head",)), Survey(120, 3, ("lm_head",))]
    assert together(parts) == Survey(220, 3, ("lm_head",))


def test_a_model_that_was_silently_left_alone_is_refused() -> None:
    found = survey(Linear(torch.ones(6, 4), UnquantizedLinearMethod()))
    with pytest.raises(LoadError, match="quantized no layer of mine"):
        found.require_quantized("mine")


@pytest.mark.parametrize(
    ("options", "device", "reason"),
    [
        ({"quantize": "int4"}, "cuda", "the openvino runner's"),
        ({"quantize": "fp8"}, "cpu", "no such kernel for CPUs"),
        ({"quantize": "nf4", "dtype": "float32"}, "cpu", "leave --dtype out"),
        (
            {"quantize": "nf4", "speculative": "draft_model", "draft_model": "d"},
            "cuda",
            "--quantize int8 does",
        ),
        ({"quantize": "nf4"}, "cpu", "pip install --no-deps vllm-bnb-plugin"),
        ({"quantize": "int8"}, "cuda", "pip install --no-deps torchao"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    options: dict[str, Any], device: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=reason):
        check_quantization(config(**options), device)


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ({}, "cpu"),
        ({"quantize": "fp8"}, "cuda"),
        ({"quantize": "nf4"}, "cpu"),
        ({"quantize": "nf4", "dtype": "float16"}, "cuda"),
        ({"quantize": "int8", "dtype": "float32"}, "cpu"),
    ],
)
def test_what_can_be_is_taken(
    options: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    check_quantization(config(**options), device)


def test_what_vllm_is_told() -> None:
    assert quantization_values("none") == {}
    assert quantization_values("nf4") == {"quantization": "bitsandbytes"}
    assert quantization_values("fp8") == {"quantization": "fp8"}


def test_nf4_is_computed_in_bfloat16() -> None:
    assert dtype_for(config(quantize="nf4")) == "bfloat16"
    assert dtype_for(config(quantize="nf4", dtype="float16")) == "float16"
    assert dtype_for(config(quantize="int8")) == "auto"
