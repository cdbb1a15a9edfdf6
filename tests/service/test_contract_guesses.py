"""Guesses change what an answer costs, and nothing else: on every engine, as in `test_contract`.

Sampled answers are held against how likely transformers finds them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
DRAWN: dict[str, Any] = {"temperature": 1.5, "top_k": 3, "max_tokens": 3}


@pytest.fixture(scope="module", params=ASKED)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


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


@pytest.fixture(scope="module", params=["prompt_lookup", "draft_model", "first_layers"])
def guessing(
    engine: str, start_server: StartServer, first_layers: Path, request: pytest.FixtureRequest
) -> Iterator[Server]:
    draft = {"draft_model": DRAFT, "first_layers": first_layers}.get(request.param)
    options = ["--speculative", "prompt_lookup"]
    if draft is not None:
        options = ["--speculative", "draft_model", "--draft-model", str(draft)]
    options += ENGINES[engine]
    with start_server(*options) as server:
        yield server


def test_guesses_change_no_token(guessing: Server, reference: dict[str, str]) -> None:
    bodies = [ask(guessing, text) for text in TEXTS]
    assert [said(body) for body in bodies] == list(reference.values())
    assert together(guessing, TEXTS) == list(reference.values())
    drafted = sum(body["usage"]["energy"]["drafted_tokens"] for body in bodies)
    accepted = sum(body["usage"]["energy"]["accepted_tokens"] for body in bodies)
    assert 0 < accepted <= drafted


def test_sampling_goes_with_guesses(guessing: Server, reference: dict[str, str]) -> None:
    settings = {"temperature": 1.0, "seed": 7}
    first = said(ask(guessing, TEXTS[1], **settings))
    assert said(ask(guessing, TEXTS[1], **settings)) == first
    assert together(guessing, TEXTS[:3], **settings)[1] == first
    assert said(ask(guessing, TEXTS[1], temperature=1.0, seed=8)) != first
    only = {"temperature": 1.5, "top_k": 1, "seed": 7}
    assert together(guessing, TEXTS, **only) == list(reference.values())


def test_guesses_leave_each_answer_as_likely_as_it_is(
    guessing: Server, likely: dict[str, float]
) -> None:
    counts: Counter[str] = Counter()
    for seed in range(4):
        body = guessing.completion(PROMPT, n=128, seed=seed, **DRAWN)
        answer = guessing.http.post("/v1/completions", json=body).raise_for_status()
        counts.update(choice["text"] for choice in answer.json()["choices"])
    total = counts.total()
    apart = sum(abs(counts[text] / total - likely.get(text, 0)) for text in {*counts, *likely}) / 2
    assert apart < 0.15


def test_a_schema_goes_with_guesses_or_is_refused(engine: str, guessing: Server) -> None:
    if engine != "vllm":
        body = guessing.chat() | held_to(SCHEMA)
        assert guessing.http.post("/v1/chat/completions", json=body).status_code == 400
        return
    for temperature in (0, 1.0):
        body = ask(guessing, TEXTS[1], **held_to(SCHEMA, temperature=temperature, n=3, seed=1))
        check_animals(body)
