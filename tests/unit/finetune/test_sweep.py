"""Sweeps: what is tried, how far, and who goes on."""

from pathlib import Path

import pytest

from finetune.plan.sweep import SweepTrial, best, rungs, settings_of, with_settings
from finetune.recipe import Recipe
from greenllm.config import ConfigError


def test_every_combination_is_tried() -> None:
    found = settings_of("learning-rate=1e-3,4e-3; rank=4,8")
    assert found == [
        {"learning_rate": 1e-3, "rank": 4},
        {"learning_rate": 1e-3, "rank": 8},
        {"learning_rate": 4e-3, "rank": 4},
        {"learning_rate": 4e-3, "rank": 8},
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("magic=1,2", "magic is none of"),
        ("output=a,b", "output is none of"),
        ("rank=", "rank has no values"),
        ("rank=8", "at least two"),
        ("", "at least two"),
        ("rank=big,small", "--sweep rank must be of type int"),
        ("schedule=linear,zigzag", "must be one of"),
        (";".join(["rank=1,2,3,4", "alpha=1,2,3,4"] * 20), "more than 64 combinations"),
    ],
)
def test_what_cannot_be_swept_is_named(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        settings_of(text)


def test_the_better_half_goes_twice_as_far() -> None:
    assert rungs(4, 80) == [(4, 10), (2, 20)]
    assert rungs(8, 80) == [(8, 10), (4, 20), (2, 40)]
    assert rungs(2, 4) == [(2, 1)]
    assert rungs(5, 80) == [(5, 10), (3, 20), (2, 40)]


def test_failed_trials_come_last() -> None:
    trials = [
        SweepTrial({"rank": 1}, 5, None, 1.0),
        SweepTrial({"rank": 2}, 5, 0.0, 1.0),
        SweepTrial({"rank": 3}, 5, 2.0, 1.0),
    ]
    assert [trial.settings["rank"] for trial in best(trials, 3)] == [2, 3, 1]


def test_settings_are_checked_with_the_rest() -> None:
    recipe = Recipe(data="example", output=Path("o"))
    assert with_settings(recipe, {"targets": ["q_proj"]}).targets == ("q_proj",)
    with pytest.raises(ConfigError, match="--rank"):
        with_settings(recipe, {"rank": 0})
