"""What a compression is told, and what its figures come to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.bill.report import Grams
from finetune.compressing.config import CompressConfig
from finetune.compressing.report import Costs, Side, build, markdown, verdict
from greenllm.config import ConfigError
from greenllm.energy.carbon.grid import Intensity
from greenllm.intervals import Interval, wilson

OUTPUT = Path("out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": None, "layers": 2}, "--output is needed"),
        ({}, "--method prune needs one of --layers, --heads, --mlp-width"),
        ({"method": "student"}, "--method student needs one of --layers"),
        ({"layers": 2, "hidden_size": 64}, "--hidden-size does not go with --method prune"),
        ({"layers": 0}, r"--layers must be greater than 0 \(got 0\)"),
        ({"layers": 2, "quality_share": 0.0}, "--quality-share must be above 0"),
        ({"method": "student", "layers": 2, "heal": "lora"}, "--heal lora does not go with"),
        ({"layers": 2, "heal": "none", "rank": 4}, "--rank goes with healing"),
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
    ],
)
def test_how_it_is_healed(given: dict[str, Any], healing: str | None) -> None:
    assert CompressConfig(output=OUTPUT, **given).healing == healing


def share(hits: int, size: int = 100) -> Interval:
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
        (
            side(95, 0.5),
            True,
            r"0.51 x the joules, 99% of the quality is kept \(at least 90% by the intervals\)$",
        ),
        (side(80, 0.1), False, "not green: .*83% of the quality is kept, less than the 95%"),
        (side(96, 1.2), False, "not green: a right answer costs 1.20 x"),
        (side(96, None), False, "^not known: joules of a right answer are not known for both$"),
        (side(0, 0.1), False, "^not green: nothing is right afterwards$"),
        (side(0, None), False, "^not green: nothing is right afterwards$"),
    ],
)
def test_green_is_fewer_joules_for_a_right_answer_at_the_quality(
    after: Side, is_green: bool, told: str
) -> None:
    found = verdict(side(96, 1.0), after, 0.95)
    assert found.is_green == is_green
    assert re.search(told, found.reason)


def test_intervals_are_told_only_where_they_say_otherwise() -> None:
    sure = replace(side(95, 0.5), solved=share(95_000, 100_000))
    found = verdict(replace(side(96, 1.0), solved=share(96_000, 100_000)), sure, 0.95)
    assert found.is_green
    assert found.reason.endswith("99% of the quality is kept")
    assert "interval" not in verdict(side(96, 1.0), side(80, 0.1), 0.95).reason, "less, anyhow"


def test_where_nothing_was_right_before_nothing_is_green() -> None:
    found = verdict(side(0, 1.0), side(50, 0.5), 0.95)
    assert (found.is_green, found.reason) == (False, "not known: nothing was right before")


COSTS = Costs(300.0, 40.0, {"compressing": 100.0, "training": 200.0}, "modelled:x", False)
GRAMS = Grams(Intensity(360.0, "FRA", "France", 2025, "a table", "CC BY 4.0"), 1.5, None)
IDENTITY = {"base": "big", "method": "prune", "command": "greenllm compress big"}


def test_it_pays_back_after_what_a_right_answer_saves() -> None:
    found = build(IDENTITY, (side(100, 2.0), side(100, 0.5, 500)), COSTS, GRAMS, 0.95, {})
    assert found["break_even"]["requests"] == 200, "300 J over 1.5 J"
    page = markdown(found)
    most = found["break_even"]["at_most"]
    assert most > 200
    line = f"after 200 right answers (at most {most:,}, by the intervals of the shares)."
    assert f"It has paid back {line}" in page
    assert "| parameters | 1,000 | 500 | 0.50 |" in page
    assert "40 J more, not counted" in page


def test_the_grams_of_making_it_are_told_with_what_they_rest_on() -> None:
    costs = replace(COSTS, cost_j=3.6e6)
    found = build(IDENTITY, (side(100, 2.0), side(100, 0.5)), costs, GRAMS, 0.95, {})
    assert found["carbon"] == {
        "operational_g": pytest.approx(540.0), "embodied_g": None, "total_g": None,
        "intensity_g_per_kwh": 360.0, "intensity_zone": "FRA", "intensity_source": "a table",
        "intensity_year": 2025, "pue": 1.5,
    }  # fmt: skip
    page = markdown(found)
    line = "The electricity of making it is 540 g CO2e at 360 g/kWh (FRA, a table, 2025), PUE 1.5;"
    assert line in page


def test_what_is_not_known_is_no_number() -> None:
    costs = replace(COSTS, cost_j=None, scoring_j=None, by_phase={"training": None})
    found = build(IDENTITY, (side(100, None), side(100, None)), costs, GRAMS, 0.95, {})
    assert found["break_even"] is None
    assert not found["is_green"]
    assert set(found["carbon"].values()) == {None}
    assert "The grams of making it are not known." in markdown(found)
    page = markdown(found)
    assert "| J per token | - | - | - |" in page
    assert "not known" in page


def test_what_is_not_green_does_not_pay_back_as_asked_for() -> None:
    found = build(IDENTITY, (side(100, 2.0), side(80, 0.5)), COSTS, GRAMS, 0.95, {})
    assert "It has paid back" not in markdown(found)
    assert "joules alone would be made up for by" in markdown(found)


def test_a_bill_is_not_divided_by_another_meters_joules() -> None:
    sides = side(100, 2.0), side(100, 0.5)
    same = build(IDENTITY, sides, replace(COSTS, scoring_methods=("modelled:x",)), GRAMS, 0.95, {})
    other = build(
        IDENTITY, sides, replace(COSTS, scoring_methods=("measured:rapl",)), GRAMS, 0.95, {}
    )
    assert same["break_even"]["requests"] == 200
    assert other["break_even"] is None


def test_what_costs_more_never_pays_back() -> None:
    found = build(IDENTITY, (side(100, 1.0), side(100, 1.0)), COSTS, GRAMS, 0.95, {})
    assert found["break_even"]["requests"] is None
    assert "never" in markdown(found)
