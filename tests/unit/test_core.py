"""The vocabulary checks its values, expands requests and keeps the unknown unknown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.core import (
    Batch,
    Chunk,
    Grammar,
    InvalidRequestError,
    SamplingParams,
    sequences_of,
)
from greenllm.energy.receipt import Receipt
from tests.fake_engine import make_request, make_runner
from tests.fake_model import VOCABULARY
from tests.sampling_examples import ADJUST_LOGITS, examples

NO_EOS: frozenset[int] = frozenset()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 10**400),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-40),
        ("repetition_penalty", 0.009),
        ("temperature", 1e-46),
        ("top_p", 1e-40),
        ("min_p", 1e-300),
        ("frequency_penalty", 1e300),
        ("presence_penalty", Fraction(1, 10**50)),
        ("logit_bias", {1: 1e-46}),
        ("repetition_penalty", math.inf),
        ("presence_penalty", -2.5),
        ("frequency_penalty", 3),
        ("min_tokens", -1),
        ("max_tokens", -1),
        ("n", 0),
        ("n", 129),
        ("stop", ("fine", "")),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: math.nan}),
        ("temperature", "hot"),
        ("top_p", None),
        ("top_k", 1.5),
        ("n", 1.5),
        ("max_tokens", None),
        ("max_tokens", 2.5),
        ("seed", "x"),
        ("logprobs", -1),
        ("logprobs", 0.5),
        ("prompt_logprobs", -1),
        ("stop", "END"),
        ("stop", (5,)),
        ("stop_token_ids", ("5",)),
        ("logit_bias", {"5": 1.0}),
        ("logit_bias", {5: "much"}),
        ("logit_bias", None),
        ("stop", None),
        ("stop", b"END"),
        ("stop_token_ids", 5),
        ("stop_token_ids", (True,)),
        ("ignore_eos", "no"),
        ("ignore_eos", 1),
        ("logprobs", True),
        ("n", True),
        ("temperature", False),
        ("grammar", {"type": "object"}),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert name in str(caught.value)


def test_no_field_takes_a_value_of_any_kind() -> None:
    nothing: Any = object()
    for spec in fields(SamplingParams):
        with pytest.raises(InvalidRequestError, match=f"^{spec.name} must be .*, got <object") as e:
            SamplingParams(**{spec.name: nothing})
        assert e.value.param == spec.name


def test_stops_are_kept_as_they_were_given() -> None:
    texts, ids = ["a", "b"], [3, 4]
    params = SamplingParams(stop=texts, stop_token_ids=ids)
    texts.append("")
    ids.append(-1)
    assert (params.stop, params.stop_token_ids) == (("a", "b"), {3, 4})
    assert params == SamplingParams(stop=("a", "b"), stop_token_ids=(3, 4))


@pytest.mark.parametrize(
    ("name", "most", "too_many"),
    [
        ("stop", ("x",) * 16, ("x",) * 17),
        ("stop", ("x" * 1000, "y" * 24), ("x" * 1000, "y" * 25)),
        ("stop_token_ids", range(1024), range(1025)),
        ("logit_bias", dict.fromkeys(range(1024), 1.0), dict.fromkeys(range(1025), 1.0)),
    ],
)
def test_what_every_token_is_compared_with_is_bounded(name: str, most: Any, too_many: Any) -> None:
    assert SamplingParams(**{name: most})
    with pytest.raises(InvalidRequestError, match=f"^{name} may hold .* at most") as caught:
        SamplingParams(**{name: too_many})
    assert caught.value.param == name


def test_a_list_is_measured_before_its_items_are_looked_at() -> None:
    class Long(list[int]):
        def __len__(self) -> int:
            return 10**7

        def __iter__(self) -> Iterator[int]:
            raise AssertionError("nobody should look")

    with pytest.raises(InvalidRequestError, match="at most, got 10000000"):
        SamplingParams(stop_token_ids=Long())


def test_a_schema_is_bounded() -> None:
    with pytest.raises(InvalidRequestError, match="70000 characters") as caught:
        Grammar("json_schema", "x" * 70_000)
    assert caught.value.param == "response_format"


def test_numbers_are_kept_as_python_has_them() -> None:
    """A step computes with them, together with those of other requests."""
    biases: Any = {5: Fraction(1, 2)}
    half: Any = Fraction(1, 2)
    params = SamplingParams(temperature=half, logit_bias=biases)
    biases[6] = Fraction(1)
    assert (params.temperature, params.logit_bias) == (0.5, {5: 0.5})
    kept = [params.temperature, *params.logit_bias.values()]
    assert [type(number) for number in kept] == [float, float]


def test_a_refusal_does_not_repeat_what_is_long() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(stop=("x" * 10_000, 5))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


def test_ends_that_the_model_does_not_have_end_nothing() -> None:
    """A sampler would look for their logits."""
    info = replace(make_runner().info, eos_token_ids=frozenset({-1, 0, VOCABULARY - 1, VOCABULARY}))
    assert info.eos_token_ids == {0, VOCABULARY - 1}


def test_what_adjusts_logits_is_no_plain_choice() -> None:
    """A step may take the largest logit as it is only where no field asks for another."""
    found = {name for name, one in examples(0).items() if _adjusts(name, one.given)}
    assert found == ADJUST_LOGITS
    assert set(examples(0)) == {spec.name for spec in fields(SamplingParams)}


def _adjusts(name: str, given: SamplingParams) -> bool:
    alone = SamplingParams(**{"temperature": 0, name: getattr(given, name)})
    assert not (alone.has_penalties and alone.takes_the_best)
    return alone.has_penalties


def test_min_tokens_beyond_max_tokens_is_refused() -> None:
    assert SamplingParams(min_tokens=3, max_tokens=3).min_tokens == 3
    with pytest.raises(InvalidRequestError, match="greater than max_tokens") as caught:
        SamplingParams(min_tokens=4, max_tokens=3)
    assert caught.value.param == "min_tokens"


@pytest.mark.parametrize(
    ("options", "greedy", "penalties"),
    [
        ({}, False, False),
        ({"temperature": 0}, True, False),
        ({"repetition_penalty": 1.1}, False, True),
        ({"presence_penalty": 0.1}, False, True),
        ({"frequency_penalty": -0.1}, False, True),
        ({"logit_bias": {3: 1.0}}, False, True),
    ],
)
def test_greedy_and_penalties(options: dict[str, Any], greedy: bool, penalties: bool) -> None:
    params = SamplingParams(**options)
    assert params.is_greedy is greedy
    assert params.has_penalties is penalties


def test_a_request_counts_its_prompts_once() -> None:
    request = make_request("r", (1, 2, 3), (4,), n=3)
    assert request.prompt_tokens == 4
    assert request.num_sequences == 6


def test_siblings_follow_the_first_of_their_prompt() -> None:
    request = make_request("r", (1, 2, 3), (4,), n=2, max_tokens=5)
    first, second, third, fourth = sequences_of(request, eos_token_ids=NO_EOS, max_len=7)
    assert [seq.index for seq in (first, second, third, fourth)] == [0, 1, 2, 3]
    assert (first.leader, third.leader) == (None, None)
    assert second.leader is first
    assert fourth.leader is third
    assert [first.max_len, third.max_len] == [7, 6]
    second.token_ids.append(9)
    assert first.token_ids == [1, 2, 3]


def test_seeds_repeat_when_given_and_differ_between_choices() -> None:
    def seeds(**sampling: Any) -> list[int]:
        request = make_request("r", (1,), n=4, **sampling)
        return [seq.seed for seq in sequences_of(request, eos_token_ids=NO_EOS, max_len=9)]

    assert seeds(seed=7) == seeds(seed=7)
    assert seeds(seed=7) != seeds(seed=8)
    assert len({*seeds(seed=7), *seeds(seed=None), *seeds(seed=None)}) == 12
    assert all(0 <= seed < 2**64 for seed in seeds(seed=-5))


@given(st.integers(1, 12), st.integers(0, 5), st.data())
def test_a_sequence_is_in_decode_with_one_generated_token_to_compute(
    prompt_len: int, generated: int, data: st.DataObject
) -> None:
    request = make_request("r", [1] * prompt_len)
    (seq,) = sequences_of(request, eos_token_ids=NO_EOS, max_len=99)
    seq.token_ids += [2] * generated
    seq.num_computed = data.draw(st.integers(0, prompt_len + generated))
    assert seq.num_generated == generated
    left = len(seq.token_ids) - seq.num_computed
    assert seq.in_decode == (generated > 0 and left == 1)
    assert not seq.is_finished


def test_chunks_know_their_tokens_and_phase() -> None:
    (seq,) = sequences_of(make_request("r", (1, 2, 3)), eos_token_ids=NO_EOS, max_len=9)
    seq.token_ids.append(4)
    head, tail = Chunk(seq, 1, 2, samples=False), Chunk(seq, 3, 1, samples=True)
    assert (head.end, head.token_ids, head.phase) == (3, [2, 3], "prefill")
    assert (tail.end, tail.token_ids, tail.phase) == (4, [4], "decode")
    assert Batch((head, tail)).num_tokens == 3


def make_receipt(**values: Any) -> Receipt:
    base = {
        "request_id": "r",
        "model": "m",
        "outcome": "completed",
        "created_s": 0.0,
        "status": "final",
        "method": "test",
        "measured": True,
    }
    return Receipt(**{**base, **values})


def test_what_is_unknown_stays_unknown() -> None:
    receipt = make_receipt(idle_j=2.0, embodied_g=1.0, completion_tokens=5, duration_s=1.0)
    derived = (receipt.total_j, receipt.joules_per_token, receipt.avg_power_w, receipt.gco2e)
    assert derived == (None, None, None, None)


def test_derived_figures() -> None:
    receipt = make_receipt(
        active_j=6.0,
        idle_j=2.0,
        completion_tokens=4,
        duration_s=2.0,
        operational_g=0.5,
        embodied_g=0.25,
    )
    assert receipt.total_j == 8.0
    assert receipt.joules_per_token == 2.0
    assert receipt.avg_power_w == 4.0
    assert receipt.gco2e == 0.75


def test_nothing_is_divided_by_zero() -> None:
    receipt = make_receipt(active_j=6.0, operational_g=0.5)
    assert receipt.total_j == 6.0
    assert receipt.joules_per_token is None
    assert receipt.avg_power_w is None
    assert receipt.gco2e is None, "manufacture is unknown, and that is not zero"
