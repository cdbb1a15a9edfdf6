"""Shapley values of a real model's steps: every subset is run, and shares are held against them."""

from __future__ import annotations

import pytest

from evals.entry import BenchError
from evals.studies.truth.games import Player
from evals.studies.truth.measured import measure_games

GAME = (Player(0, 32), Player(16), Player(24, num_drafts=4))


def test_the_bundled_model_plays() -> None:
    found = measure_games("bundled", 1, 4, "cpu", games={"mixed": GAME})
    (game,) = found["games"]
    assert game["worth_s"] > 0
    assert 0 <= game["misplaced"] < 1
    assert sum(row["share"] for row in game["players"]) == pytest.approx(1.0)
    assert sum(row["fitted"] for row in game["players"]) == pytest.approx(1.0)


def test_what_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(BenchError, match="token at 1000000 does not fit"):
        measure_games("bundled", 1, 2, "cpu", games={"far": (Player(8), Player(10**6))})
    with pytest.raises(BenchError, match="--unit takes cpu or wall"):
        measure_games("bundled", 1, 2, "joules")
