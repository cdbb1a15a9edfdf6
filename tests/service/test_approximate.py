"""Answers that may leave the model early, through the official client: asked, marked, booked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

import greenllm
from greenllm.exits import MOST_PENDING
from greenllm.speculation.calibrated_exit import EXIT_THRESHOLDS

if TYPE_CHECKING:
    from tests.service.conftest import Server, StartServer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
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
def shelf(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    """A folder with one adapter."""
    root = tmp_path_factory.mktemp("shelf")
    make_adapter(BUNDLED, root / "fox")
    return root


@pytest.fixture(scope="module")
def calibrated(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, shelf: Path
) -> Server:
    """The bundled model with made-up thresholds, one of which every token is above."""
    folder = tmp_path_factory.mktemp("models") / NAME
    shutil.copytree(BUNDLED, folder)
    path = folder / "config.json"
    thresholds = {str(LAYER): {"0.9": ALWAYS, "0.99": NEVER}}
    config = {**json.loads(path.read_text(encoding="utf-8")), EXIT_THRESHOLDS: thresholds}
    path.write_text(json.dumps(config), encoding="utf-8")
    options = ("--adapter-dirs", str(shelf), "--speculative", "prompt_lookup")
    return start_server(str(folder), *options)


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
    [(0.9, 0.9, MEAN_LAYERS), (0.5, 0.9, MEAN_LAYERS), (0.91, 0.99, LAYERS), (0.99, 0.99, LAYERS)],
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


REFUSED: list[tuple[Any, str]] = [
    ({"threshold": 0}, "approximate.threshold"),
    ({"threshold": 1}, "approximate.threshold"),
    ({"threshold": 2}, "approximate.threshold"),
    ({"threshold": -0.5}, "approximate.threshold"),
    ({"threshold": "0.5"}, "approximate.threshold"),
    ({"agreement": 0.999}, "approximate.agreement"),
    ({"agreement": 1}, "approximate.agreement"),
    ({"agreement": [0.9]}, "approximate.agreement"),
    ({"agreement": 0.9, "threshold": 0.5}, "approximate"),
    ({}, "approximate"),
    (True, "approximate"),
    (0.9, "approximate"),
    ({"threshold": 0.5, "exit_layer": 2}, "approximate.exit_layer"),
]


@pytest.mark.parametrize("call", [complete, chat], ids=["completions", "chat"])
@pytest.mark.parametrize(("approximate", "param"), REFUSED)
def test_what_cannot_be_asked_for_is_refused(
    client: openai.OpenAI, call: Callable[..., Any], approximate: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        call(client, approximate)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("approximate", "param"),
    [
        ({"agreement": 0.995}, "approximate.agreement"),
        ({"agreement": 1.5}, "approximate.agreement"),
        ({"agreement": 0}, "approximate.agreement"),
        ({"agreement": 0.9, "threshold": 0.5}, "approximate"),
    ],
)
def test_a_calibrated_model_refuses_what_it_cannot_promise(
    calibrated: Server, approximate: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(calibrated.openai, approximate, model=NAME)
    assert caught.value.param == param


def test_nothing_is_guessed_beside_even_where_the_server_would(calibrated: Server) -> None:
    def ask(**more: Any) -> Any:
        body = calibrated.completion(STORY * 3, max_tokens=20, temperature=0, **more)
        body |= {"model": NAME, "approximate": {"agreement": 0.9}}
        return calibrated.http.post("/v1/completions", json=body)

    for more in ({}, {"speculative": {"method": "off"}}):
        assert ask(**more).json()["usage"]["energy"]["drafted_tokens"] == 0
    refused = ask(speculative={"method": "prompt_lookup"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "approximate")


def test_adapters_do_not_leave_early(calibrated: Server, shelf: Path) -> None:
    load = {"lora_name": "fox", "lora_path": str(shelf / "fox")}
    calibrated.http.post("/v1/load_lora_adapter", json=load).raise_for_status()
    for model in ("fox", f"{NAME}:fox"):
        with pytest.raises(openai.BadRequestError) as caught:
            complete(calibrated.openai, {"agreement": 0.9}, model=model)
        assert caught.value.param == "approximate"
        assert "adapters" in str(caught.value)
    assert marks(complete(calibrated.openai, model="fox").parse()) == (False, None, None)
    body = {"lora_name": "fox"}
    assert calibrated.http.post("/v1/unload_lora_adapter", json=body).status_code == 200


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


def test_company_changes_no_answer(client: openai.OpenAI) -> None:
    def text(prompt: str, approximate: Any = None) -> str:
        answer = complete(client, approximate, prompt=prompt, max_tokens=60).parse()
        found: str = answer.choices[0].text
        return found

    prompts = [f"{number} brave foxes" for number in range(4)]
    alone = [text(prompt) for prompt in prompts]
    early = [text(prompt, {"threshold": ALWAYS}) for prompt in prompts]
    jobs = [(prompt, how) for prompt in prompts for how in (None, {"threshold": ALWAYS})]
    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(lambda job: text(*job), jobs))
    assert found[::2] == alone
    assert found[1::2] == early


@pytest.mark.parametrize("max_tokens", [45, 77, 99])
def test_what_left_early_is_not_what_others_go_on_from(server: Server, max_tokens: int) -> None:
    """Scored prompts are computed anew, so they show what the answer is without a prefix cache."""

    def answer(prompt: list[int], length: int, **more: Any) -> dict[str, Any]:
        body = server.completion(prompt, max_tokens=length, temperature=0, **more)
        found: dict[str, Any] = server.http.post("/v1/completions", json=body).json()
        return found

    prompt = server.tokenize(f"{max_tokens} owls")
    early = answer(prompt, max_tokens, approximate={"threshold": ALWAYS}, echo=True, logprobs=0)
    told = server.tokenize("".join(early["choices"][0]["logprobs"]["tokens"]))
    warm, cold = answer(told, 24), answer(told, 24, prompt_logprobs=0)
    assert warm["choices"][0]["text"] == cold["choices"][0]["text"]
    details = warm["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] <= len(prompt)


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
