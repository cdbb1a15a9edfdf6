"""Keys of adapters mean what they mean to PEFT, as far as that is found in a bounded time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.model.lora_patterns import is_name, is_safe, patterns

PATHS = [
    *(f"model.layers.{i}.self_attn.{name}_proj" for i in range(12) for name in "qkv"),
    *(f"model.layers.{i}.mlp.down_proj" for i in (0, 1, 10, 11)),
    "q_proj",
    "transformer.h.1.attn.c_attn",
]
KEYS = [
    "q_proj",
    "layers.1.mlp.down_proj",
    "model.layers.10.self_attn.q_proj",
    "^model.layers.1.self_attn.v_proj",
    "^layers.1.self_attn.v_proj",
    r"layers\.1\.self_attn\.k_proj",
    r"layers\.\d+\.mlp\.down_proj",
    "layers.*q_proj",
    "down_proj$",
    "attn.c_attn",
    "_proj",
    ".",
]


def as_peft(keys: list[str], path: str) -> str | None:
    """What `peft.utils.get_pattern_key` does."""
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", path)), None)


@given(st.lists(st.sampled_from(KEYS), unique=True))
def test_the_first_key_that_fits_counts_as_in_peft(keys: list[str]) -> None:
    assert all(map(is_safe, keys))
    found = patterns({key: key for key in keys})
    for path in PATHS:
        assert found.of(path, "") == (as_peft(keys, path) or "")


@pytest.mark.parametrize(
    "key",
    [
        "([a-z0-9_.]+)+!",
        "(q|v)_proj",
        "q_proj|v_proj",
        "(a|a)(a|a)b",
        ".*.*",
        "a*+",
        "a{1,9}",
        "[a-z]+",
        r"\w",
        "(?=q)",
        "",
        "(",
        "*",
        "q proj",
        "ä",
        "q_proj\n",
        "q" * 257,
    ],
)
def test_what_could_be_searched_for_long_is_not_taken(key: str) -> None:
    assert not is_safe(key)


def test_what_is_taken_is_found_soon() -> None:
    """One search holds the interpreter's lock: this would take for ever, or it is over at once."""
    found = patterns({"a" * 120 + ".*" + "a" * 120: 1, "a*" + "." * 200 + "b": 2})
    assert found.of("a." * 256, 0) == 0


def test_names_are_looked_up_not_searched() -> None:
    assert is_name("model.layers.0.self_attn.q_proj")
    assert is_name("^q_proj")
    assert not is_name("q_proj$")
    many = {f"layers.{i}.q_proj": i for i in range(10_000)}
    found = patterns(many)
    assert not found.expressions
    assert found.of("model.layers.777.q_proj", -1) == 777
    assert found.of("model.layers.777.k_proj", -1) == -1
