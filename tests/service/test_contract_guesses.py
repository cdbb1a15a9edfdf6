"""Guesses change what an answer costs, and nothing else: on every engine, as in `test_contract`.

Sampled answers are held against how likely transformers finds them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from greenllm.model.options import LoadOptions
from greenllm.model.truncate import truncate
from tests.service.contract import (
    ASKED,
    BUNDLED,
    ENGINES,
    SCHEMA,
    TEXTS,
    ask,
    check_animals,
    greedy_answers,
    held_to,
    said,
    together,
)

if TYPE_CHECKING:
    from tests.service.conftest import Server, StartServer

DRAFT = BUNDLED.with_name("bundled_draft")
# What of it repeats is there for prompt lookup to guess from.
PROMPT = "Once upon a time there was a fox. The fox was red. Once upon a time there was a"
NATIVE = ("prompt_lookup", "draft_model")
VLLM = (*NATIVE, "first_layers")  # which leaves early only so
DRAWN: dict[str, Any] = {"temperature": 1.5, "top_k": 3, "max_tokens": 3}


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return greedy_answers()


@pytest.fixture(scope="module")
def likely() -> dict[str, float]:
    """How likely each answer of `DRAWN` to `PROMPT` is, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    prompt = tokenizer(PROMPT)["input_ids"]
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(DRAWN["max_tokens"]):
        shorter, found = found, {}
        for ids, share in shorter.items():
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
            best = (logits / DRAWN["temperature"]).topk(DRAWN["top_k"])
            for token, chance in zip(best.indices, best.values.softmax(-1), strict=True):
                found[*ids, int(token)] = share * float(chance)
    texts: defaultdict[str, float] = defaultdict(float)
    for ids, share in found.items():
        texts[tokenizer.decode(ids, skip_special_tokens=True)] += share
    return dict(texts)


@pytest.fixture(scope="module")
def first_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model up to its exit, as a draft model."""
    output = tmp_path_factory.mktemp("draft") / "exit"
    truncate("bundled", 4, output, LoadOptions())
    return output


class Guessing(NamedTuple):
    """A server, and what asks it for guesses; vLLM's guess in one way, for every request."""

    engine: str
    server: Server
    how: dict[str, Any]

    def ask(self, text: str, **more: Any) -> dict[str, Any]:
        return ask(self.server, text, **self.how, **more)

    def together(self, texts: tuple[str, ...], **more: Any) -> list[str]:
        return together(self.server, texts, **self.how, **more)


@pytest.fixture(scope="module")
def native(start_server: StartServer) -> Callable[[str], Server]:
    """The server of an engine that guesses in any way it is asked for."""
    return cache(lambda name: start_server("--draft-model", str(DRAFT), *ENGINES[name]))


@pytest.fixture(
    scope="module",
    params=[(engine, way) for engine in ASKED for way in (VLLM if engine == "vllm" else NATIVE)],
    ids="-".join,
)
def guessing(
    request: pytest.FixtureRequest,
    start_server: StartServer,
    native: Callable[[str], Server],
) -> Iterator[Guessing]:
    engine, way = request.param
    if engine != "vllm":
        yield Guessing(engine, native(engine), {"speculative": {"method": way}})
        return
    options = ["--speculative", "prompt_lookup"]
    if way != "prompt_lookup":
        draft = DRAFT if way == "draft_model" else request.getfixturevalue(way)
        options = ["--speculative", "draft_model", "--draft-model", str(draft)]
    with start_server(*options, *ENGINES[engine]) as server:
        yield Guessing(engine, server, {})


def test_guesses_change_no_token(guessing: Guessing, reference: dict[str, str]) -> None:
    bodies = [guessing.ask(text) for text in TEXTS]
    assert [said(body) for body in bodies] == list(reference.values())
    assert guessing.together(TEXTS) == list(reference.values())
    drafted = sum(body["usage"]["energy"]["drafted_tokens"] for body in bodies)
    accepted = sum(body["usage"]["energy"]["accepted_tokens"] for body in bodies)
    assert 0 < accepted <= drafted


def test_sampling_goes_with_guesses(guessing: Guessing, reference: dict[str, str]) -> None:
    settings = {"temperature": 1.0, "seed": 7}
    first = said(guessing.ask(TEXTS[1], **settings))
    assert said(guessing.ask(TEXTS[1], **settings)) == first
    assert guessing.together(TEXTS[:3], **settings)[1] == first
    assert said(guessing.ask(TEXTS[1], temperature=1.0, seed=8)) != first
    only = {"temperature": 1.5, "top_k": 1, "seed": 7}
    assert guessing.together(TEXTS, **only) == list(reference.values())


def test_guesses_leave_each_answer_as_likely_as_it_is(
    guessing: Guessing, likely: dict[str, float]
) -> None:
    counts: Counter[str] = Counter()
    for seed in range(4):
        body = guessing.server.completion(PROMPT, n=128, seed=seed, **DRAWN, **guessing.how)
        answer = guessing.server.http.post("/v1/completions", json=body).raise_for_status()
        counts.update(choice["text"] for choice in answer.json()["choices"])
    total = counts.total()
    apart = sum(abs(counts[text] / total - likely.get(text, 0)) for text in {*counts, *likely}) / 2
    assert apart < 0.15


def test_a_schema_goes_with_guesses_or_is_refused(guessing: Guessing) -> None:
    if guessing.engine != "vllm":
        body = guessing.server.chat() | held_to(SCHEMA) | guessing.how
        assert guessing.server.http.post("/v1/chat/completions", json=body).status_code == 400
        return
    for temperature in (0, 1.0):
        body = guessing.ask(TEXTS[1], **held_to(SCHEMA, temperature=temperature, n=3, seed=1))
        check_animals(body)
