"""Bodies with mistakes: the same from the same chance, mostly wrong, never what was given."""

from __future__ import annotations

import json
import random

import pytest

from evals.chaos.mutate import _is_right
from evals.chaos.mutations import RIGHT, mutated

ERROR = json.dumps({"error": dict.fromkeys(("message", "type", "param", "code"))}).encode()


@pytest.mark.parametrize("path", RIGHT)
def test_bodies_differ_and_can_be_made_again(path: str) -> None:
    for body in RIGHT[path]:
        before = json.dumps(body)
        made = [mutated(body, random.Random(seed)) for seed in range(200)]
        assert made == [mutated(body, random.Random(seed)) for seed in range(200)]
        assert json.dumps(body) == before, "what was given stays right"
        assert len(set(made)) > 50
        assert sum(raw == before.encode() for raw in made) < 20


@pytest.mark.parametrize(
    ("status", "text", "right"),
    [
        (200, b"anything", True),
        (400, ERROR, True),
        (400, b"{}", False),
        (404, b"<html>", False),
        (500, ERROR, False),
        (503, ERROR, False),
        ("TimeoutError", b"", False),
    ],
)
def test_an_answer_is_right_or_an_error_object(status: int | str, text: bytes, right: bool) -> None:
    assert _is_right(status, text) is right
