"""The guard against other packages with our top-level names."""

from __future__ import annotations

import pytest

from greenllm.clashes import TOP_LEVEL, find_clashes


def test_this_environment_has_none() -> None:
    assert find_clashes() == []


def test_our_own_names_are_no_clash() -> None:
    assert find_clashes({name: ["greenllm"] for name in TOP_LEVEL}) == []


def test_nobody_owns_anything() -> None:
    assert find_clashes({}) == []


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_a_stranger_is_named(name: str) -> None:
    [line] = find_clashes({name: ["greenllm", "stranger", "another", "stranger"]})
    assert repr(name) in line
    assert "another, stranger" in line
    assert "environment" in line


def test_every_clash_is_named_and_other_names_are_not() -> None:
    owners = {"serving": ["a"], "evals": ["b"], "numpy": ["numpy"]}
    assert len(find_clashes(owners)) == 2
