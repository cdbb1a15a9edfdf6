"""What is missing is found, whichever side it is on."""

from __future__ import annotations

import random

import pytest

from evals.studies.conservation import ADAPTER, bodies, books
from greenllm.energy.account.totals import Totals

TOTALS = Totals(meter_j=10, load_j=2, idle_j=1, unattributed_j=0.5, requests_j=6, open_j=0.5)


def test_nothing_is_missing_where_rows_hold_the_rest() -> None:
    found = books(TOTALS, 6.0, 6.0)
    assert (found["error"], found["answers_error"]) == (0, 0)


def test_a_row_that_is_missing_is_an_error_whatever_the_session_says() -> None:
    found = books(TOTALS, 5.0, 6.0)
    assert found["error"] == pytest.approx(0.1)
    assert found["answers_error"] == pytest.approx(0.2)


def test_the_load_is_mixed_and_the_same_each_time() -> None:
    found = bodies("m", 6, random.Random(1))
    assert found == bodies("m", 6, random.Random(1))
    assert [body["model"] for body in found] == ["m", "m", ADAPTER, "m", "m", ADAPTER]
    assert len({len(body["prompt"]) for body in found}) > 1
    assert {body["temperature"] for body in found} == {0, 1.0}
