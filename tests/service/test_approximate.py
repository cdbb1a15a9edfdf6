"""Answers that may leave the model early, through the official client: marked and booked.

What is refused is tested without a model, in tests/api and tests/unit/speculation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

import greenllm
from greenllm.exits import MOST_PENDING
from greenllm.speculation.calibrated_exit import EXIT_THRESHOLDS

if TYPE_CHECKING:
    from tests.service.conftest import Server, StartServer

BUNDLED = Path(greenllm.__file__).parent / "model" / "bundled"
NAME = "calibrated"
LAYER, LAYERS = 4, 12
ALWAYS, NEVER = 0.000001, 0.999999
STORY = "Tell me a story about a brave fox."
# One token of the prompt, as many as may wait, the one that ends the waiting, and as many again.
NUM_TOKENS = 2 * (MOST_PENDING + 1)
MEAN_LAYERS = LAYERS - (LAYERS - LAYER) * 2 * MOST_PENDING / NUM_TOKENS
KEYS = ("approximate", "mean_layers", "agreement_target")


@pytest.fixture(scope="module")
def calibrated(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The bundled model with made-up thresholds, one of which every token is above."""
    folder = tmp_path_factory.mktemp("models") / NAME
    shutil.copytree(BUNDLED, folder)
    path = folder / "config.json"
    thresholds = {str(LAYER): {"0.9": ALWAYS, "0.99": NEVER}}
    config = {**json.loads(path.read_text(encoding="utf-8")), EXIT_THRESHOLDS: thresholds}
    path.write_text(json.dumps(config), encoding="utf-8")
    return start_server(str(folder), "--speculative", "prompt_lookup")


def complete(client: openai.OpenAI, approximate: Any = None, **how: Any) -> Any:
    """A greedy completion of a fixed length, with its headers."""
    extra: dict[str, Any] = {"ignore_eos": True}
    extra |= {} if approximate is None else {"approximate": approximate}
    options = {"model": "bundled", "prompt": STORY, "temperature": 0, "max_tokens": NUM_TOKENS}
    return client.completions.with_raw_response.create(extra_body=extra, **{**options, **how})


def chat(client: openai.OpenAI, approximate: Any = None, **how: Any) -> Any:
    """A greedy chat answer of a fixed length, or a stream of it."""
    extra: dict[str, Any] = {"ignore_eos": True}
    extra |= {} if approximate is None else {"approximate": approximate}
    options: dict[str, Any] = {"model": "bundled", "temperature": 0, "max_tokens": NUM_TOKENS}
    messages = [{"role": "user", "content": STORY}]
    return client.chat.completions.create(
        messages=messages,  # type: ignore[arg-type]
        extra_body=extra,
        **{**options, **how},
    )


def energy_of(answer: Any) -> dict[str, Any]:
    energy: dict[str, Any] = answer.usage.model_extra["energy"]
    return energy


def marks(answer: Any) -> tuple[Any, ...]:
    """What the energy object says of layers."""
    energy = energy_of(answer)
    return tuple(energy[key] for key in KEYS)


def test_an_approximate_answer_says_so_everywhere(client: openai.OpenAI) -> None:
    raw = complete(client, {"threshold": ALWAYS})
    answer = raw.parse()

    assert raw.headers["X-Approximate"] == "true"
    assert answer.model_extra["approximate"] is True
    assert marks(answer) == (True, pytest.approx(MEAN_LAYERS, rel=0.005), None)
    assert answer.usage.completion_tokens == NUM_TOKENS
    told = chat(client, {"threshold": ALWAYS})
    assert told.model_extra["approximate"] is True
    assert marks(told) == marks(answer)


def test_other_answers_say_nothing_of_it(client: openai.OpenAI) -> None:
    raw = complete(client)
    answer = raw.parse()

    assert "X-Approximate" not in raw.headers
    assert "approximate" not in answer.model_extra
    assert "approximate" not in chat(client).model_extra
    assert marks(answer) == (False, None, None)


def test_an_exit_that_is_never_sure_changes_nothing_but_the_marks(client: openai.OpenAI) -> None:
    plain, never, always = (
        complete(client, approximate).parse()
        for approximate in (None, {"threshold": NEVER}, {"threshold": ALWAYS})
    )

    assert never.choices[0].text == plain.choices[0].text
    assert never.model_extra["approximate"] is True
    assert marks(never) == (True, LAYERS, None)
    assert always.choices[0].text != plain.choices[0].text


@pytest.mark.parametrize(
    ("asked", "given", "mean"),
    [(0.5, 0.9, MEAN_LAYERS), (0.91, 0.99, LAYERS)],
)
def test_an_agreement_is_the_next_one_the_model_was_calibrated_for(
    calibrated: Server, asked: float, given: float, mean: float
) -> None:
    answer = complete(calibrated.openai, {"agreement": asked}, model=NAME).parse()

    assert marks(answer) == (True, pytest.approx(mean, rel=0.005), given)


def stream(client: openai.OpenAI, approximate: Any = None) -> list[Any]:
    """Chunks of a chat answer with usage."""
    options = {"include_usage": True}
    with chat(client, approximate, stream=True, stream_options=options) as chunks:
        return list(chunks)


def test_streams_are_the_answers_and_each_chunk_is_marked(client: openai.OpenAI) -> None:
    answer, chunks = chat(client, {"threshold": ALWAYS}), stream(client, {"threshold": ALWAYS})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    assert text == answer.choices[0].message.content
    assert {chunk.model_extra["approximate"] for chunk in chunks} == {True}
    assert marks(chunks[-1]) == marks(answer)
    assert chunks[-1].usage.completion_tokens == NUM_TOKENS
    assert not any("approximate" in chunk.model_extra for chunk in stream(client))


def test_text_streams_are_marked_too(server: Server) -> None:
    body = server.completion(STORY, max_tokens=9, stream=True, approximate={"threshold": ALWAYS})
    lines = server.http.post("/v1/completions", json=body).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    (energy,) = (json.loads(line[9:]) for line in lines if line.startswith(": energy "))

    assert [event["approximate"] for event in events] == [True] * len(events)
    assert energy["approximate"] is True
    assert LAYER < energy["mean_layers"] < LAYERS


def test_the_ledger_and_the_receipt_know_it(calibrated: Server) -> None:
    answer = complete(calibrated.openai, {"agreement": 0.8}, model=NAME).parse()
    row = calibrated.row(answer.id)
    receipt = calibrated.http.get(f"/v1/energy/{answer.id}").json()

    assert (row.approximate, row.agreement_target) == (True, 0.9)
    assert row.mean_layers == pytest.approx(MEAN_LAYERS)
    assert tuple(receipt[key] for key in KEYS) == marks(answer)
    plain = calibrated.row(complete(calibrated.openai, model=NAME).parse().id)
    assert (plain.approximate, plain.mean_layers, plain.agreement_target) == (False, None, None)


def test_models_say_where_they_are_left_and_what_they_promise(
    server: Server, calibrated: Server
) -> None:
    ours = server.http.get("/v1/models/bundled").json()["approximate"]
    theirs = calibrated.http.get(f"/v1/models/{NAME}").json()["approximate"]

    assert theirs == {"exit_layer": LAYER, "agreements": [0.9, 0.99]}
    assert (ours["exit_layer"], set(ours)) == (LAYER, set(theirs))


def test_the_books_are_balanced(server: Server, calibrated: Server) -> None:
    """Last in this file: joules of tokens that left early are on the bills."""
    complete(calibrated.openai, {"agreement": 0.9}, model=NAME)
    complete(server.openai, {"threshold": ALWAYS})
    for one in (server, calibrated):
        one.wait_idle()
        assert one.session().totals.requests_j > 0
        assert one.metric("conservation_violations_total") == 0
    rows = calibrated.rows(outcome="completed", approximate=True)
    assert rows
    for row in rows:
        parts = (row.prefill_j or 0) + (row.decode_j or 0) + (row.draft_j or 0)
        assert row.active_j == pytest.approx(parts)
        assert (row.active_j or 0) > 0
