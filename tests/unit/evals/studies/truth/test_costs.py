"""Laws of simulated step costs: shares are Shapley values, and add up to the step."""

from __future__ import annotations

import numpy as np
import pytest

from evals.studies.truth.costs import LAWS, Part, work_of
from evals.studies.truth.shapley import exact, members

PARTS = [
    Part("a", 0, 40, 1, is_prompt=True),
    Part("b", 300, 1, 1),
    Part("c", 20, 5, 5),
    Part("d", 80, 1, 1, adapter_parameters=4_000_000),
    Part("b", 310, 1, 1),
]


def crowd(count: int) -> list[Part]:
    return [Part(str(number), 10 * number, 1 + number % 5, 1) for number in range(count)]


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("parts", [PARTS[:1], PARTS, crowd(11)], ids=["one", "few", "many"])
def test_shares_add_up_to_the_step(name: str, parts: list[Part]) -> None:
    law, work = LAWS[name], np.array(list(work_of(parts).values()))
    shares = law.shares(work, np.random.default_rng(1))
    assert len(shares) == len({part.owner for part in parts})
    assert shares.sum() == pytest.approx(law.joules(work.sum(axis=0)))
    assert (shares > 0).all()


@pytest.mark.parametrize("name", LAWS)
def test_shares_are_the_shapley_values_of_the_whole_cost(name: str) -> None:
    law, work = LAWS[name], np.array(list(work_of(PARTS).values()))
    subsets = members(len(work)) @ work
    worth = np.array([0.0, *(law.joules(subset) for subset in subsets[1:])])
    assert law.shares(work, np.random.default_rng(1)) == pytest.approx(exact(worth))


def test_a_request_of_two_sequences_is_one_player() -> None:
    rows = work_of(PARTS)
    assert list(rows) == ["a", "b", "c", "d"]
    assert rows["b"][0] == 1
    assert rows["b"][2] == 2


def test_an_adapter_makes_a_token_dearer() -> None:
    plain, adapted = (
        work_of([Part("x", 80, 1, 1, adapter_parameters=count)])["x"] for count in (0, 10**7)
    )
    assert LAWS["additive"].joules(adapted) > LAWS["additive"].joules(plain)


def test_tiles_cost_the_same_whether_full_or_not() -> None:
    tile, law = 16, LAWS["tiles16"]
    one, full, more = (law.joules(np.array([1.0, 0, rows, 0, 0])) for rows in (1, tile, tile + 1))
    assert one == full < more
