"""Prompt lookup: what is guessed from where, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.speculation.prompt_lookup import look_up


@pytest.mark.parametrize(
    ("token_ids", "num_tokens", "guesses"),
    [
        pytest.param([], 4, (), id="no text"),
        pytest.param([1], 4, (), id="one token"),
        pytest.param([1, 2, 3, 4], 4, (), id="nothing twice"),
        pytest.param([1, 2, 3, 7, 8, 1, 2, 3], 2, (7, 8), id="three tokens"),
        pytest.param([1, 2, 3, 7, 5, 1, 2, 3, 8, 6, 1, 2, 3], 2, (8, 6), id="latest place"),
        pytest.param(
            [9, 1, 2, 3, 7, 5, 4, 1, 2, 3, 8, 6, 9, 1, 2, 3], 2, (7, 5), id="longest match"
        ),
        pytest.param([1, 2, 3, 1, 2, 3], 5, (1, 2, 3, 1, 2), id="goes on with itself"),
        pytest.param([1, 2, 7, 8, 9, 5, 6, 4, 1, 2], 8, (7, 8, 9, 5), id="two tokens: four"),
        pytest.param([1, 7, 8, 9, 4, 1], 8, (7, 8), id="one token: two"),
        pytest.param([1, 7, 8, 1, 9, 4, 1], 8, (), id="one token that stood there twice"),
        # The source 1 2 3 50 51 4 5 6 7 was copied with 60 61 62 in place of 50 51.
        pytest.param(
            [1, 2, 3, 50, 51, 4, 5, 6, 7, 0, 1, 2, 3, 60, 61, 62, 4], 3, (5, 6, 7), id="a change"
        ),
        pytest.param(
            [1, 2, 3, 50, 51, 4, 5, 6, 7, 0, 1, 2, 3, 60, 61], 3, (), id="in a change: nothing"
        ),
    ],
)
def test_guesses(token_ids: list[int], num_tokens: int, guesses: tuple[int, ...]) -> None:
    assert look_up(token_ids, num_tokens) == guesses


def test_bytes_are_not_taken_for_tokens() -> None:
    """256, 0 is 0 1 0 0 0 0 0 0 in memory, in which 1 0 0 0 is no token."""
    assert look_up([256, 0, 9, 1], 4) == ()
    assert look_up([256, 1, 0, 9, 1], 1) == (0,)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 16))
def test_guesses_are_of_the_text_and_no_more_than_asked(ids: list[int], number: int) -> None:
    guesses = look_up(ids, number)
    assert len(guesses) <= number
    assert set(guesses) <= set(ids)
    assert look_up(ids, number) == guesses
