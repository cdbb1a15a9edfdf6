"""What a compression is told, and what its figures come to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.compressing.config import CompressConfig
from finetune.compressing.factors_report import is_green
from finetune.compressing.factors_report import markdown as factors_page
from finetune.compressing.report import Costs, Side, build, markdown, verdict
from greenllm.config import ConfigError
from greenllm.estimate import Estimate, wilson

OUTPUT = Path("out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": None, "layers": 2}, "--output is needed"),
        ({}, "--method prune needs one of --layers, --heads, --mlp-width"),
        ({"method": "student"}, "--method student needs one of --layers"),
        ({"method": "svd"}, "--method svd needs one of --rank-share"),
        ({"layers": 2, "hidden_size": 64}, "--hidden-size does not go with --method prune"),
        ({"method": "svd", "rank_share": 0.5, "layers": 2}, "--layers does not go with"),
        ({"layers": 0}, "--layers must be above 0"),
        ({"method": "sparsity", "zeros": 1.0}, "--zeros must be above 0 and below 1"),
        ({"layers": 2, "quality_share": 0.0}, "--quality-share must be above 0"),
        ({"method": "student", "layers": 2, "heal": "lora"}, "--heal lora does not go with"),
        ({"method": "sparsity", "zeros": 0.5, "heal": "full"}, "--heal full does not go with"),
        ({"method": "sparsity", "zeros": 0.5, "steps": 9}, "--steps goes with healing"),
        ({"layers": 2, "heal": "none", "rank": 4}, "--rank goes with healing"),
        (
            {"method": "svd", "rank_share": 0.5, "tasks": "x"},
            "--tasks does not go with --method svd",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        CompressConfig(**{"output": OUTPUT, **given})


@pytest.mark.parametrize(
    ("given", "healing"),
    [
        ({"layers": 2}, "lora"),
        ({"layers": 2, "heal": "none"}, None),
        ({"layers": 2, "heal": "full"}, "full"),
        ({"method": "student", "layers": 2}, "full"),
        ({"method": "sparsity", "zeros": 0.5}, None),
    ],
)
def test_how_it_is_healed(given: dict[str, Any], healing: str | None) -> None:
    assert CompressConfig(output=OUTPUT, **given).healing == healing


def share(hits: int, size: int = 100) -> Estimate:
    found = wilson(hits, size)
    assert found is not None
    return found


def side(hits: int, joules: float | None, parameters: int = 1000) -> Side:
    return Side(
        parameters, 4 * parameters, share(hits), joules, joules, 0.1, 0.2, {"a": hits / 100}
    )


@pytest.mark.parametrize(
    ("after", "is_green", "told"),
    [
        (side(95, 0.5), True, "costs 0.51 x the joules, 99% of the quality"),
        (side(80, 0.1), False, "not green: .*83% of the quality is kept, less than the 95%"),
        (side(96, 1.2), False, "not green: a right answer costs 1.20 x"),
        (side(96, None), False, "not known"),
        (side(0, 0.1), False, "not known"),
    ],
)
def test_green_is_fewer_joules_for_a_right_answer_at_the_quality(
    after: Side, is_green: bool, told: str
) -> None:
    found = verdict(side(96, 1.0), after, 0.95)
    assert found.is_green == is_green
    assert re.search(told, found.reason)


COSTS = Costs(300.0, 40.0, {"compressing": 100.0, "training": 200.0}, "modelled:x", False)
IDENTITY = {"base": "big", "method": "prune", "command": "greenllm compress big"}


def test_it_pays_back_after_what_a_right_answer_saves() -> None:
    found = build(IDENTITY, (side(100, 2.0), side(100, 0.5, 500)), COSTS, 0.95, {})
    assert found["break_even"]["requests"] == 200, "300 J over 1.5 J"
    page = markdown(found)
    assert "It has paid back after 200 right answers" in page
    assert "| parameters | 1,000 | 500 | 0.50 |" in page
    assert "40 J more, not counted" in page


def test_what_is_not_known_is_no_number() -> None:
    costs = replace(COSTS, cost_j=None, scoring_j=None, by_phase={"training": None})
    found = build(IDENTITY, (side(100, None), side(100, None)), costs, 0.95, {})
    assert found["break_even"] is None
    assert not found["is_green"]
    page = markdown(found)
    assert "| J per token | - | - | - |" in page
    assert "not known" in page


def test_what_is_not_green_does_not_pay_back_as_asked_for() -> None:
    found = build(IDENTITY, (side(100, 2.0), side(80, 0.5)), COSTS, 0.95, {})
    assert "It has paid back" not in markdown(found)
    assert "joules alone would be made up for by" in markdown(found)


def test_a_bill_is_not_divided_by_another_meters_joules() -> None:
    sides = side(100, 2.0), side(100, 0.5)
    same = build(IDENTITY, sides, replace(COSTS, scoring_methods=("modelled:x",)), 0.95, {})
    other = build(IDENTITY, sides, replace(COSTS, scoring_methods=("measured:rapl",)), 0.95, {})
    assert same["break_even"]["requests"] == 200
    assert other["break_even"] is None


def test_what_costs_more_never_pays_back() -> None:
    found = build(IDENTITY, (side(100, 1.0), side(100, 1.0)), COSTS, 0.95, {})
    assert found["break_even"]["requests"] is None
    assert "never" in markdown(found)


def factors(loss: float, joules: float | None) -> dict[str, Any]:
    def model(size: int, value: float, cost: float | None) -> dict[str, Any]:
        decoding = [
            {"batch_size": n, "seconds_per_token": 0.1, "joules_per_token": cost} for n in (1, 8)
        ]
        return {"parameters": size, "loss": {"value": value}, "decoding": decoding}

    return {
        "matrices": 3,
        "models": {"dense": model(100, 1.0, 1.0), "factored": model(50, loss, joules)},
    }


def test_factors_are_green_only_where_both_hold() -> None:
    assert is_green(factors(1.01, 0.9), 0.95)
    assert not is_green(factors(1.01, 1.1), 0.95)
    assert not is_green(factors(1.5, 0.9), 0.95)
    assert not is_green(factors(1.01, None), 0.95)
    page, green = factors_page(factors(1.5, 0.9), 0.95)
    assert not green
    assert "not green" in page
    assert "| loss on held-out examples | 1.0000 | 1.5000 | 1.50 |" in page
