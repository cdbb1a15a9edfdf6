"""What every engine has to do alike, through a real server: native on both runners, and vLLM.

`GREENLLM_ENGINES` names the engines, comma-separated; vLLM has an environment of its own (`make
test-vllm`). Greedy tokens are held against transformers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.service.contract import (
    ASKED,
    BUNDLED,
    ENGINES,
    MAX_TOKENS,
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

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module", params=ASKED)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    for seed, name in enumerate(("fox", "owl")):
        make_adapter(BUNDLED, root / name, seed=seed, std=0.2, r=8, target_modules="all-linear")
    return root


@pytest.fixture(scope="module")
def served(engine: str, start_server: StartServer, shelf: Path) -> Iterator[Server]:
    with start_server(*ENGINES[engine], "--adapter-dirs", str(shelf)) as server:
        yield server
    assert server.process.returncode == 0


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return greedy_answers()


def test_greedy_answers_are_those_of_transformers(
    served: Server, reference: dict[str, str]
) -> None:
    alone = {text: said(ask(served, text)) for text in TEXTS}
    assert alone == reference
    assert together(served, TEXTS) == list(reference.values())


def test_a_seed_gives_the_same_answer_again(served: Server) -> None:
    settings = {"temperature": 1.0, "seed": 7}
    first = said(ask(served, TEXTS[1], **settings))
    assert said(ask(served, TEXTS[1], **settings)) == first
    assert together(served, TEXTS[:3], **settings)[1] == first
    assert said(ask(served, TEXTS[1], temperature=1.0, seed=8)) != first


def test_choices_of_one_prompt_are_one_request(served: Server) -> None:
    body = ask(served, TEXTS[1], n=3, temperature=1.0, seed=1)
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert len(set(texts)) == 3
    assert body["usage"]["completion_tokens"] > MAX_TOKENS


def test_stop_strings_end_and_are_left_out(served: Server, reference: dict[str, str]) -> None:
    whole = reference[TEXTS[1]]
    stop = whole[12:15]
    body = ask(served, TEXTS[1], stop=[stop])
    assert said(body) == whole[: whole.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"


def test_a_length_is_kept(served: Server) -> None:
    body = ask(served, TEXTS[1], max_tokens=5, ignore_eos=True)
    assert body["usage"]["completion_tokens"] == 5
    assert body["choices"][0]["finish_reason"] == "length"


def test_log_probabilities_are_of_the_tokens(served: Server) -> None:
    body = ask(served, TEXTS[0], max_tokens=4, logprobs=True, top_logprobs=3)
    entries = body["choices"][0]["logprobs"]["content"]
    assert len(entries) == 4
    for entry in entries:
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert entry["logprob"] == pytest.approx(tops[0], abs=1e-4)


@torch.inference_mode()
def test_prompts_are_scored_as_by_transformers(served: Server) -> None:
    ids = served.tokenize("Once upon a time there was a fox.")
    body = served.completion(ids, max_tokens=0, echo=True, logprobs=1)
    found = served.http.post("/v1/completions", json=body).raise_for_status().json()
    scores = found["choices"][0]["logprobs"]["token_logprobs"]
    assert scores[0] is None
    assert found["usage"]["completion_tokens"] == 0
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    rows = model(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
    plain = rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert scores[1:] == pytest.approx(plain, abs=1e-3)


def test_adapters_in_one_batch_leave_each_other_alone(served: Server, shelf: Path) -> None:
    for name in ("fox", "owl"):
        body = {"lora_name": name, "lora_path": str(shelf / name)}
        served.http.post("/v1/load_lora_adapter", json=body).raise_for_status()
    names = ("bundled", "fox", "owl", "bundled")
    alone = [said(ask(served, TEXTS[1], model=name)) for name in names]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(len(names)) as pool:
        mixed = list(pool.map(lambda name: said(ask(served, TEXTS[1], model=name)), names))
    assert mixed == alone
    served.http.post("/v1/unload_lora_adapter", json={"lora_name": "fox"}).raise_for_status()
    body = served.chat(TEXTS[1]) | {"model": "fox"}
    assert served.http.post("/v1/chat/completions", json=body).status_code == 404


def test_a_broken_adapter_is_refused_and_nothing_stops(served: Server, shelf: Path) -> None:
    broken = shelf / "broken"
    shutil.copytree(shelf / "owl", broken, dirs_exist_ok=True)
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    body = {"lora_name": "broken", "lora_path": str(broken)}
    assert served.http.post("/v1/load_lora_adapter", json=body).status_code == 400
    assert said(ask(served, TEXTS[0]))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"messages": []}, "messages"),
        ({"speculative": {"method": "draft_model"}}, "speculative.method"),
    ],
)
def test_refusals_name_the_parameter(served: Server, change: dict[str, Any], param: str) -> None:
    body = served.chat() | change
    answer = served.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_answers_are_held_to_a_schema_or_that_is_refused(engine: str, served: Server) -> None:
    if engine != "vllm":
        for asked in (held_to(SCHEMA), {"response_format": {"type": "json_object"}}):
            answer = served.http.post("/v1/chat/completions", json=served.chat() | asked)
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["param"] == "response_format"
            assert "native engine" in error["message"]
        return
    with ThreadPoolExecutor(4) as pool:
        plain = pool.submit(ask, served, TEXTS[0])
        settings = {"temperature": 1.0, "max_tokens": 60, "n": 3}
        bodies = [
            pool.submit(ask, served, TEXTS[1], **held_to(SCHEMA, seed=i, **settings))
            for i in range(3)
        ]
    for body in bodies:
        check_animals(body.result())
    assert said(plain.result()) == said(ask(served, TEXTS[0]))
    anything = ask(served, TEXTS[1], max_tokens=200, response_format={"type": "json_object"})
    assert said(anything).startswith("{")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nope"},
        {"type": "string", "pattern": "(("},
        {"type": "integer", "multipleOf": 3},
        {"$ref": "http://localhost/other.json"},
        {"type": "object", "properties": 5},
        {"oneOf": [{"type": "number"}, {"type": "integer"}]},
        {"minLength": 1},
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(served: Server, schema: Any) -> None:
    answer = served.http.post("/v1/chat/completions", json=served.chat() | held_to(schema))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
    assert said(ask(served, TEXTS[0]))


def test_a_stream_says_the_same_and_ends_with_its_joules(
    served: Server, reference: dict[str, str]
) -> None:
    stream = served.openai.chat.completions.create(
        model="bundled",
        messages=[{"role": "user", "content": TEXTS[1]}],
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == reference[TEXTS[1]]
    usage: Any = chunks[-1].usage
    assert usage is not None
    assert usage.energy["energy_joules"] > 0


def test_leaving_ends_a_request_and_its_joules_are_kept(
    served: Server, until: Callable[..., Any]
) -> None:
    client: openai.OpenAI = served.openai
    stream = client.chat.completions.create(
        model="bundled",
        messages=[{"role": "user", "content": TEXTS[1]}],
        max_tokens=400,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    first = next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
    stream.close()
    served.wait_idle()
    row = served.row(first.id)
    assert row.outcome == "aborted"
    assert 0 < row.completion_tokens < 400


def test_cached_prompts_cost_less_to_read(served: Server) -> None:
    words = " ".join(f"word {i}" for i in range(60))
    usages = [ask(served, words, max_tokens=2)["usage"] for _ in range(2)]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert cached[0] < cached[1] <= usages[1]["prompt_tokens"]
    assert cached[1] > usages[1]["prompt_tokens"] / 2


def test_every_joule_is_on_a_bill(served: Server) -> None:
    together(served, TEXTS, max_tokens=16)
    served.wait_idle()
    session = served.http.get("/v1/energy").json()["session"]
    assert session["residual"] < 1e-6
    assert session["request_joules"] > 0
    assert served.metric("conservation_violations_total") == 0
