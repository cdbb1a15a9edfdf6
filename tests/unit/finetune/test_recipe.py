"""What a recipe refuses before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from finetune.recipe import Recipe
from greenllm.config import ConfigError, load


def make(**given: Any) -> Recipe:
    return Recipe(**{"data": "example", "output": Path("out"), **given})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("alpha", -1.0),
        ("learning_rate", 0.0),
        ("steps", 0),
        ("tokens", -5),
        ("dropout", 1.0),
        ("validation_share", 1.0),
        ("warmup_share", -0.1),
        ("budget_wh", 0.0),
        ("pue", 0.9),
        ("answers", -1),
        ("device", "tpu"),
        ("targets", ()),
    ],
)
def test_a_value_that_cannot_be_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
        make(**{name: value})


def test_steps_and_tokens_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--tokens excludes --steps"):
        make(steps=5, tokens=100)


def test_patience_needs_looks() -> None:
    with pytest.raises(ConfigError, match="--patience needs --eval-every"):
        make(patience=2)
    assert make(patience=2, eval_every=10).patience == 2


@pytest.mark.parametrize("given", [{"output": None}, {"name": "notes"}])
def test_exactly_one_place_is_needed(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--name, for an adapter"):
        make(**given)


def test_a_name_puts_the_adapter_where_servers_look(tmp_path: Path) -> None:
    recipe = make(output=None, name="notes", data_dir=tmp_path)
    assert recipe.folder == tmp_path / "adapters" / "notes"
    with pytest.raises(ConfigError, match="--name must be"):
        make(output=None, name="../notes")
    with pytest.raises(ConfigError, match="--output"):
        make(output=None, name="notes", method="full")


def test_the_rate_depends_on_the_method() -> None:
    assert make().peak_rate > make(method="full").peak_rate
    assert make(learning_rate=1e-5).peak_rate == 1e-5


def test_a_file_fills_what_flags_do_not(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('data = "example"\noutput = "o"\nrank = 4\ntargets = ["q_proj"]\nseed = 1\n')
    recipe = load(Recipe, flags={"rank": 16}, file=file)
    assert (recipe.rank, recipe.targets, recipe.seed) == (16, ("q_proj",), 1)
    file.write_text("ranks = 4\n")
    with pytest.raises(ConfigError, match="unknown option 'ranks'"):
        load(Recipe, flags={}, file=file)


@pytest.mark.parametrize(
    ("name", "value", "objective"),
    [
        ("exits", (1,), "layerskip"),
        ("exit_weight", 0.9, "layerskip"),
        ("beta", 0.5, "dpo"),
        ("teacher", "big", "distill"),
        ("teacher_weight", 1.0, "distill"),
        ("teacher_temperature", 2.0, "distill"),
    ],
)
def test_an_option_of_another_objective_is_refused(name: str, value: Any, objective: str) -> None:
    option = name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{option} goes with --objective {objective}"):
        make(**{name: value})
    more = {"teacher": "big"} if objective == "distill" else {}
    assert getattr(make(**{**more, name: value, "objective": objective}), name) == value


def test_what_an_objective_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="--teacher is needed for --objective distill"):
        make(objective="distill")
    with pytest.raises(ConfigError, match="--teacher-weight must not be above 1"):
        make(objective="distill", teacher="big", teacher_weight=1.5)
    for option in ({"packing": True}, {"dropout": 0.1}):
        with pytest.raises(ConfigError, match="does not go with --objective dpo"):
            make(objective="dpo", **option)


def test_preferences_are_learnt_at_a_tenth_of_the_rate() -> None:
    assert make(objective="dpo").peak_rate == pytest.approx(make().peak_rate / 10)
    assert make(objective="dpo", learning_rate=1e-3).peak_rate == 1e-3
