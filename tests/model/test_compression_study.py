"""Zeros and factors in place of matrices: what they change, and that both are measured."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from evals.studies.compression import factorize, matrices_of, measure, page, zero_smallest
from finetune.bill.phases import PhaseAccount
from finetune.compressing.making import read_model
from greenllm.energy.meters.modelled import modelled_meter
from tests.model.finetuning import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def logits(one: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = one(input_ids=IDS).logits
    return found


def test_the_smallest_weights_become_zero() -> None:
    one = model()
    largest = {name: m.weight.abs().max().item() for name, m in matrices_of(one).items()}
    zero_smallest(one, 0.5)
    for name, matrix in matrices_of(one).items():
        assert (matrix.weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
        assert matrix.weight.abs().max().item() == largest[name]


def test_factors_of_full_rank_compute_the_same_and_of_a_low_one_do_not() -> None:
    one = model()
    before = logits(one)
    # Twice the parameters hold the whole of any matrix.
    factorize(one, 2.0)
    linear = [m for m in one.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 2 * 4 * 7
    assert torch.allclose(logits(one), before, atol=1e-4)
    other = model()
    parameters = other.num_parameters()
    factorize(other, 0.5)
    assert other.num_parameters() < 0.75 * parameters
    assert not torch.allclose(logits(other), before, atol=1e-2)


def test_both_are_measured_beside_the_matrices(tmp_path: Path) -> None:
    place = {"device": "cpu", "threads": 1, "seed": 7}
    source = read_model(str(save_tiny(tmp_path / "tiny")), "generated", 200, tmp_path, **place)
    models = {"dense": source.model, "factors": factorize(copy.deepcopy(source.model), 0.5)}
    found = measure(models, source, 2, PhaseAccount(modelled_meter()))
    dense, factors = found["dense"], found["factors"]
    assert factors["parameters"] < dense["parameters"]
    assert factors["loss"]["value"] != dense["loss"]["value"]
    for one in (dense, factors):
        assert list(one["decoding"]) == ["1", "8"]
        assert all(costs["joules_per_token"] > 0 for costs in one["decoding"].values())


def result(**joules: float | None) -> dict[str, Any]:
    models = {
        name: {
            "parameters": 100,
            "loss": {"value": 1.0},
            "decoding": {
                size: {"joules_per_token": joules_per_token, "seconds_per_token": 0.1}
                for size in ("1", "8")
            },
        }
        for name, joules_per_token in joules.items()
    }
    return {"model": "m", "models": models}


def test_the_page_names_what_saves_joules() -> None:
    assert "every batch size: factors." in page(result(dense=1.0, zeros=1.1, factors=0.9))
    nothing = page(result(dense=1.0, zeros=1.1, factors=None))
    assert "neither zeros nor factors" in nothing
    assert "| factors | 100 | 1.0000 | - | 100 |" in nothing
