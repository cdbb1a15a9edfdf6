"""A request gets the threshold it asks for, or hears which field is to blame."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from greenllm.core import (
    AdapterRef,
    Approximation,
    InvalidRequestError,
    Request,
    Speculation,
    SpeculativeMethod,
)
from greenllm.engine.admission import check_approximation
from greenllm.model.info import LoadError
from greenllm.speculation.calibrated_exit import EXIT_THRESHOLDS, CalibratedExit, read_exit
from tests.fake_engine import make_request

# Not in order, as JSON may have them.
CALIBRATED = CalibratedExit(4, {0.95: 0.7, 0.9: 0.5, 0.99: 0.93})
BARE = CalibratedExit(4)


@pytest.mark.parametrize(
    ("asked", "share", "threshold"),
    [
        (0.9, 0.9, 0.5),
        (0.91, 0.95, 0.7),
        (0.95, 0.95, 0.7),
        (0.9500001, 0.99, 0.93),
        (0.01, 0.9, 0.5),
        (0.99, 0.99, 0.93),
    ],
)
def test_an_agreement_takes_the_least_calibrated_share_that_is_enough(
    asked: float, share: float, threshold: float
) -> None:
    assert CALIBRATED.approximation(asked, None) == Approximation(4, threshold, share)


@pytest.mark.parametrize("exit_", [BARE, CALIBRATED])
@pytest.mark.parametrize("threshold", [1e-6, 0.3, 0.999999])
def test_a_threshold_needs_no_calibration_and_promises_no_agreement(
    exit_: CalibratedExit, threshold: float
) -> None:
    assert exit_.approximation(None, threshold) == Approximation(4, threshold, None)


@pytest.mark.parametrize(
    ("exit_", "agreement", "threshold", "param", "words"),
    [
        (CALIBRATED, None, None, "approximate", "needs an agreement or a threshold"),
        (CALIBRATED, 0.9, 0.5, "approximate", "needs an agreement or a threshold"),
        (CALIBRATED, None, 0.0, "approximate.threshold", r"in \(0, 1\), got 0"),
        (CALIBRATED, None, 1.0, "approximate.threshold", r"in \(0, 1\), got 1"),
        (CALIBRATED, None, 2.0, "approximate.threshold", r"in \(0, 1\), got 2"),
        (CALIBRATED, None, math.nan, "approximate.threshold", r"in \(0, 1\), got nan"),
        (CALIBRATED, 0.0, None, "approximate.agreement", r"in \(0, 1\), got 0"),
        (CALIBRATED, -0.5, None, "approximate.agreement", r"in \(0, 1\), got -0.5"),
        (CALIBRATED, 1.0, None, "approximate.agreement", r"in \(0, 1\), got 1"),
        (CALIBRATED, math.nan, None, "approximate.agreement", r"in \(0, 1\), got nan"),
        (CALIBRATED, 0.991, None, "approximate.agreement", "layer 4 .* only for 0.9, 0.95, 0.99:"),
        (BARE, 0.9, None, "approximate.agreement", "for no agreement: give approximate.threshold"),
        (BARE, 1.0, None, "approximate.agreement", r"in \(0, 1\)"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_the_field_to_blame(
    exit_: CalibratedExit, agreement: float | None, threshold: float | None, param: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        exit_.approximation(agreement, threshold)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, {}),
        ({EXIT_THRESHOLDS: {}}, {}),
        ({EXIT_THRESHOLDS: {"3": {"0.9": 0.5}}}, {}),
        ({EXIT_THRESHOLDS: {"4": {}}}, {}),
        (
            {EXIT_THRESHOLDS: {"3": {"0.9": 0.1}, "4": {"0.9": 0.5, "0.99": "0.75"}}, "other": 1},
            {0.9: 0.5, 0.99: 0.75},
        ),
    ],
)
def test_thresholds_are_those_of_the_layer(
    written: dict[str, Any], expected: dict[float, float]
) -> None:
    assert read_exit(4, written) == CalibratedExit(4, expected)


@pytest.mark.parametrize(
    ("garbled", "words"),
    [
        ([0.5], "no table"),
        ("0.5", "no table"),
        (None, "no table"),
        ({"4": [0.5]}, "no table"),
        ({"4": 0.5}, "no table"),
        ({"4": {"high": 0.5}}, "no table: could not convert"),
        ({"4": {"0.9": None}}, "no table"),
        ({"4": {"0.9": [0.5]}}, "no table"),
        ({"4": {"0.9": 10**400}}, "no table"),
        ({"4": {"0.9": 0}}, r"not in \(0, 1\)"),
        ({"4": {"0.9": 1}}, r"not in \(0, 1\)"),
        ({"4": {"0.9": True}}, r"not in \(0, 1\)"),
        ({"4": {"0.9": -0.5}}, r"not in \(0, 1\)"),
        ({"4": {"0.9": math.nan}}, r"not in \(0, 1\)"),
        ({"4": {"90": 0.5}}, r"not in \(0, 1\)"),
        ({"4": {"0.9": 0.5, "1": 0.5}}, r"not in \(0, 1\)"),
    ],
)
def test_a_garbled_calibration_is_no_calibration(garbled: Any, words: str) -> None:
    with pytest.raises(LoadError, match=f"{EXIT_THRESHOLDS} in config.json .*{words}"):
        read_exit(4, {EXIT_THRESHOLDS: garbled})


def asking(request: Request, **fields: Any) -> Request:
    return replace(request, approximation=Approximation(4, 0.5), **fields)


@pytest.fixture
def request_() -> Request:
    return make_request("a", [1, 2])


def test_leaving_early_goes_with_everything_else(request_: Request) -> None:
    check_approximation(request_)
    check_approximation(asking(request_))
    check_approximation(asking(request_, speculation=Speculation("off")))
    check_approximation(replace(request_, adapter=AdapterRef("a", "d")))
    check_approximation(replace(request_, speculation=Speculation("early_exit")))


def test_exits_are_not_those_of_an_adapter(request_: Request) -> None:
    with pytest.raises(InvalidRequestError, match="not available with adapters") as caught:
        check_approximation(asking(request_, adapter=AdapterRef("a", "d")))
    assert caught.value.param == "approximate"


@pytest.mark.parametrize("method", ["auto", "prompt_lookup", "early_exit", "draft_model"])
def test_nothing_is_guessed_beside(request_: Request, method: SpeculativeMethod) -> None:
    with pytest.raises(InvalidRequestError, match=f"speculative {method} exclude") as caught:
        check_approximation(asking(request_, speculation=Speculation(method)))
    assert caught.value.param == "approximate"
