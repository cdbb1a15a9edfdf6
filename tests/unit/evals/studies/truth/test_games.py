"""Steps as games: every part of a step is one, and shares are held against its values."""

from __future__ import annotations

import pytest

from evals.studies.truth.games import (
    GAMES,
    Player,
    below,
    coalitions,
    game_figures,
    inside,
    values_in,
)

PLAYERS = (Player(0, 4), Player(8), Player(16, num_drafts=4))
OWN_S = (3.0, 1.0, 2.0)


def additive(mask: int, fixed_s: float = 6.0) -> float:
    return fixed_s + sum(OWN_S[place] for place in inside(mask))


WORTH = {mask: additive(mask) for mask in coalitions(3)}


def fair(mask: int) -> list[float]:
    return [OWN_S[place] + 6.0 / mask.bit_count() for place in inside(mask)]


def test_subsets_of_a_subset_are_in_the_order_of_its_members() -> None:
    assert inside(0b101) == [0, 2]
    assert below(0b101) == [0, 0b001, 0b100, 0b101]


def test_each_part_of_a_step_has_values_of_its_own() -> None:
    assert values_in(WORTH, 0b111) == pytest.approx([5.0, 3.0, 4.0])
    assert values_in(WORTH, 0b101) == pytest.approx([6.0, 5.0])


def test_right_shares_misplace_nothing() -> None:
    found = game_figures(PLAYERS, WORTH, (WORTH, WORTH), fair)
    assert found["worth_s"] == 12.0
    for name in ("misplaced", "mean_misplaced", "floor", "mean_floor"):
        assert found[name] == pytest.approx(0.0, abs=1e-12)
    assert [row["player"] for row in found["players"]] == [
        "prompt of 4", "token at 8", "check of 5 at 16"
    ]  # fmt: skip


def test_equal_shares_misplace_what_is_not_equal() -> None:
    found = game_figures(PLAYERS, WORTH, (WORTH, WORTH), lambda mask: [1.0] * mask.bit_count())
    assert found["misplaced"] == pytest.approx(1 / 12)
    assert found["players"][1]["error"] == pytest.approx(1 / 3)


def test_halves_that_differ_are_the_noise_floor() -> None:
    other = {mask: additive(mask, fixed_s=0.0) for mask in coalitions(3)}
    found = game_figures(PLAYERS, WORTH, (WORTH, other), fair)
    assert found["misplaced"] == pytest.approx(0.0, abs=1e-12)
    assert found["floor"] == pytest.approx(1 / 12)


def test_no_step_has_more_requests_than_can_be_enumerated() -> None:
    assert all(2 < len(players) <= 6 for players in GAMES.values())
