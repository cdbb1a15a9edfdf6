"""Adapters at run time: loaded, mixed, unloaded and counted."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from greenllm.__main__ import main
from tests.waiting import until

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

MANY = 20
KINDS: tuple[tuple[int, Sequence[str]], ...] = (
    (2, ("q_proj", "v_proj")),
    (8, ("q_proj", "v_proj")),
    (4, ("v_proj",)),
)
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, save_adapter: Callable[..., Path]) -> Path:
    """Twenty adapters of several ranks and targets."""
    root = tmp_path_factory.mktemp("shelf")
    for seed in range(MANY):
        rank, modules = KINDS[seed % len(KINDS)]
        save_adapter(root / f"a{seed:02}", seed=seed, rank=rank, modules=modules)
    return root


@pytest.fixture(scope="module")
def adapted(start_app: StartApp, shelf: Path) -> App:
    """An app that may load from the shelf, with room in memory for a few."""
    return start_app(adapter_dirs=(shelf,), adapter_cache_mb=0.06)


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(adapted: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a `greenllm` command on the app's data folder: exit code, and what it printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def greenllm(*arguments: str) -> tuple[int, str]:
        given = ["greenllm", *arguments, "--data-dir", str(adapted.data_dir)]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return greenllm


@pytest.fixture
def two(adapted: App, shelf: Path) -> Iterator[tuple[str, str]]:
    """Two adapters, loaded for one test."""
    for name in ("fox", "owl"):
        load(adapted, name, shelf / {"fox": "a00", "owl": "a01"}[name])
    yield ("fox", "owl")
    for name in ("fox", "owl"):
        unload(adapted, name)


def load(server: App, name: str, folder: Path | str) -> httpx.Response:
    body = {"lora_name": name, "lora_path": str(folder)}
    return server.http.post("/v1/load_lora_adapter", json=body)


def unload(server: App, name: str) -> httpx.Response:
    return server.http.post("/v1/unload_lora_adapter", json={"lora_name": name})


def models(server: App) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in server.http.get("/v1/models").json()["data"]}


def answer(server: App, model: str, **more: Any) -> dict[str, Any]:
    body = server.completion(max_tokens=12, temperature=0, **more) | {"model": model}
    found: dict[str, Any] = server.http.post(TEXT, json=body).raise_for_status().json()
    return found


def text_of(body: dict[str, Any]) -> str:
    text: str = body["choices"][0]["text"]
    return text


def test_an_adapter_answers_under_its_names_and_differs_from_the_base(
    adapted: App, two: tuple[str, str]
) -> None:
    base = answer(adapted, adapted.model)
    plain, full = answer(adapted, "fox"), answer(adapted, f"{adapted.model}:fox")
    assert len({text_of(base), text_of(plain), text_of(answer(adapted, "owl"))}) == 3
    assert text_of(plain) == text_of(full)
    assert [base["model"], plain["model"], full["model"]] == ["bundled", "fox", "bundled:fox"]
    assert full["usage"]["energy"]["adapter"] == "fox"
    assert base["usage"]["energy"]["adapter"] is None


def test_the_official_client_streams_from_an_adapter(adapted: App, two: tuple[str, str]) -> None:
    chunks = list(
        adapted.openai.chat.completions.create(
            model="fox",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=5,
            temperature=0,
            stream=True,
        )
    )
    assert {chunk.model for chunk in chunks} == {"fox"}
    row = adapted.row(chunks[0].id)
    assert (row.model, row.adapter, row.outcome) == ("bundled", "fox", "completed")


@pytest.mark.parametrize("name", ["nobody", "bundled:nobody", "fox:bundled", "bundled:", ":fox"])
def test_an_unknown_adapter_is_not_found(adapted: App, two: tuple[str, str], name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        adapted.openai.completions.create(model=name, prompt="a", max_tokens=1)
    assert caught.value.code == "model_not_found"
    assert adapted.http.get(f"/v1/models/{name}").status_code == 404


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
def test_an_unknown_adapter_is_refused_before_its_prompt_is_looked_at(
    adapted: App, url: str
) -> None:
    """The prompt is too long as well; the row names who was asked for."""
    long = {"prompt": [9] * 5000, "messages": [{"role": "user", "content": "fox " * 5000}]}
    field = "messages" if "chat" in url else "prompt"
    body = {"model": "nobody", field: long[field], "max_tokens": 1}
    refused = adapted.http.post(url, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")
    row = adapted.row(refused.headers["X-Request-Id"])
    assert (row.outcome, row.http_status, row.model) == ("refused", 404, "bundled")
    assert row.adapter == "nobody"


@pytest.mark.parametrize("wrong", [{"max_tokens": 10**6}, {"prompt": ""}, {"stream_options": {}}])
def test_rows_of_refused_requests_name_their_adapter(
    adapted: App, two: tuple[str, str], wrong: dict[str, Any]
) -> None:
    body = {**adapted.completion(max_tokens=1), "model": "bundled:fox", **wrong}
    refused = adapted.http.post(TEXT, json=body)
    assert refused.status_code == 400
    assert adapted.row(refused.headers["X-Request-Id"]).adapter == "fox"


def test_what_could_not_be_an_adapters_name_is_not_in_the_ledger(adapted: App) -> None:
    refused = adapted.http.post(TEXT, json={"model": "a b" * 99, "prompt": "a"})
    assert refused.status_code == 404
    assert adapted.row(refused.headers["X-Request-Id"]).adapter is None


def test_models_show_the_adapters(adapted: App, shelf: Path, two: tuple[str, str]) -> None:
    found = models(adapted)
    assert set(found) == {"bundled", "fox", "owl"}
    fox = found["fox"]
    assert (fox["parent"], fox["root"], fox["rank"]) == ("bundled", str(shelf / "a00"), 2)
    assert fox["adapter_bytes"] == 4 * fox["parameters"] > 0
    assert (fox["resident"], fox["requests_in_flight"]) == (True, 0)
    assert adapted.openai.models.retrieve("bundled:fox").id == "fox"


def test_receipts_sums_metrics_and_report_name_the_adapter(
    adapted: App, two: tuple[str, str], run: Run
) -> None:
    request_id = answer(adapted, "fox")["id"]
    assert adapted.row(request_id).adapter == "fox"
    assert adapted.http.get(f"/v1/energy/{request_id}").json()["adapter"] == "fox"
    sums = adapted.http.get("/v1/energy", params={"group_by": "adapter"}).json()["data"]
    assert next(row for row in sums if row["group"] == "fox")["energy_joules"] > 0
    adapters = [name for name in adapted.metrics() if "energy_joules_total" in name]
    assert any('adapter="fox"' in name and 'model="bundled"' in name for name in adapters)
    assert "fox" in run("report", "--group-by", "adapter")[1]


def test_an_adapter_pays_for_its_flops(adapted: App, two: tuple[str, str]) -> None:
    """Whatever the adapter, the same tokens; the prompt is computed each time."""
    found = models(adapted)
    firsts = iter(range(10, 40))
    for name in two:
        costs = []
        for model in (adapted.model, name):
            prompt = [next(firsts), *range(40, 60)]
            costs.append(answer(adapted, model, prompt=prompt)["usage"]["energy"]["flops"])
        extra = 2 * found[name]["parameters"] * (21 + 11)
        assert costs[1] - costs[0] == pytest.approx(extra, rel=0.2, abs=0.01 * costs[0])


def bad_loads(shelf: Path) -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "taken": ({"lora_name": "fox", "lora_path": str(shelf / "a02")}, "lora_path"),
        "slash": ({"lora_name": "a/b", "lora_path": str(shelf / "a02")}, "lora_name"),
        "base": ({"lora_name": "bundled", "lora_path": str(shelf / "a02")}, "lora_name"),
        "outside": ({"lora_name": "x", "lora_path": "/etc"}, "lora_path"),
        "dots": ({"lora_name": "x", "lora_path": f"{shelf}/../.."}, "lora_path"),
        "nowhere": ({"lora_name": "x", "lora_path": str(shelf / "nowhere")}, "lora_path"),
        "no path": ({"lora_name": "x"}, "lora_path"),
        "empty path": ({"lora_name": "x", "lora_path": ""}, "lora_path"),
        "unknown": (
            {"lora_name": "x", "lora_path": str(shelf / "a02"), "load_inplace": True},
            "load_inplace",
        ),
    }


@pytest.mark.parametrize("name", bad_loads(Path()))
def test_bad_loads_are_refused_and_change_nothing(
    adapted: App, shelf: Path, two: tuple[str, str], name: str
) -> None:
    body, param = bad_loads(shelf)[name]
    before = models(adapted)
    refused = adapted.http.post("/v1/load_lora_adapter", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert models(adapted) == before


def test_unloading_what_is_not_there(adapted: App) -> None:
    refused = unload(adapted, "nobody")
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "lora_name")


def test_refused_requests_let_go_of_their_adapter(adapted: App, two: tuple[str, str]) -> None:
    url = "/v1/completions"
    for wrong in ({"max_tokens": 10**6}, {"temperature": 9}, {"logit_bias": {"99999": 1}}):
        body = adapted.completion(**{"max_tokens": 1, **wrong}) | {"model": "fox"}
        assert adapted.http.post(url, json=body).status_code == 400
    assert models(adapted)["fox"]["requests_in_flight"] == 0


def test_loading_and_unloading_while_others_stream(
    adapted: App, shelf: Path, two: tuple[str, str]
) -> None:
    """Their answers are those they get in peace."""
    names = ("fox", "owl", adapted.model) * 3
    alone = {name: text_of(answer(adapted, name, seed=1)) for name in set(names)}

    def stream(name: str) -> tuple[str, str]:
        chunks = adapted.openai.completions.create(
            model=name,
            prompt="Once upon a time",
            max_tokens=12,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        return name, "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)

    with ThreadPoolExecutor(len(names)) as pool:
        running = [pool.submit(stream, name) for name in names * 3]
        for i in range(6):
            assert load(adapted, f"guest{i}", shelf / f"a{i + 4:02}").status_code == 200
            answer(adapted, f"guest{i}")
            assert unload(adapted, f"guest{i}").status_code == 200
        for done in running:
            name, text = done.result()
            assert text == alone[name]
    assert set(models(adapted)) == {"bundled", "fox", "owl"}


def test_unloading_what_is_in_use_lets_it_finish(adapted: App, shelf: Path) -> None:
    load(adapted, "brief", shelf / "a02")
    body = adapted.completion(max_tokens=30, stream=True) | {"model": "brief"}
    with (
        adapted.machine.held(after_steps=3),
        adapted.http.stream("POST", TEXT, json=body) as running,
    ):
        assert models(adapted)["brief"]["requests_in_flight"] == 1
        assert unload(adapted, "brief").status_code == 200
        refused = adapted.http.post(TEXT, json={**body, "stream": False})
        assert refused.status_code == 404
        adapted.machine.go_on()
        events = [line for line in running.iter_lines() if line]
    assert '"finish_reason":"length"' in "".join(events)
    assert events[-1] == "data: [DONE]"


def test_a_client_that_leaves_lets_go_of_its_adapter(adapted: App, two: tuple[str, str]) -> None:
    body = adapted.completion(max_tokens=900, stream=True, n=16) | {"model": "fox"}
    with (
        adapted.machine.held(after_steps=3),
        adapted.http.stream("POST", TEXT, json=body) as running,
    ):
        assert next(running.iter_lines())
        assert models(adapted)["fox"]["requests_in_flight"] == 1
    until(lambda: models(adapted)["fox"]["requests_in_flight"] == 0, "the reference's return")


def test_many_adapters_and_little_memory(adapted: App, shelf: Path) -> None:
    """Twenty are known, a few fit; each answers the same whenever it is asked."""
    names = [f"many{i:02}" for i in range(MANY)]
    for i, name in enumerate(names):
        assert load(adapted, name, shelf / f"a{i:02}").status_code == 200
    alone = {name: text_of(answer(adapted, name)) for name in names}
    with ThreadPoolExecutor(MANY) as pool:
        together = dict(
            zip(names, pool.map(lambda n: text_of(answer(adapted, n)), names), strict=True)
        )
    found = models(adapted)
    for name in names:
        unload(adapted, name)
    assert together == alone
    assert len(set(alone.values())) > MANY // 2
    held = [found[name]["adapter_bytes"] for name in names if found[name]["resident"]]
    assert 0 < sum(held) <= 6e4 < sum(found[name]["adapter_bytes"] for name in names)
    assert all(found[name]["requests_in_flight"] == 0 for name in names)


def test_adapters_of_the_data_folder_need_no_loading(adapted: App, shelf: Path, run: Run) -> None:
    """`greenllm adapters add` and `remove` beside a running server."""
    assert run("adapters", "add", "stored", str(shelf / "a03"))[0] == 0
    code, said = run("adapters", "add", "stored", str(shelf / "a04"))
    assert (code, "exists" in said) == (2, True)
    assert models(adapted)["stored"]["resident"] is False
    answer(adapted, "stored")
    assert models(adapted)["stored"]["resident"] is True
    assert "stored" in run("adapters", "list")[1]
    assert run("adapters", "remove", "stored")[0] == 0
    refused = adapted.http.post(TEXT, json={"model": "stored", "prompt": "a"})
    assert refused.status_code == 404
    assert "stored" not in models(adapted)


def test_what_add_prints_brings_a_running_server_the_new_adapter(
    adapted: App, shelf: Path, run: Run
) -> None:
    run("adapters", "add", "swapped", str(shelf / "a03"))
    before = text_of(answer(adapted, "swapped", seed=1))
    run("adapters", "remove", "swapped")
    _, printed = run("adapters", "add", "swapped", str(shelf / "a04"))
    body = adapted.completion(max_tokens=1) | {"model": "swapped"}
    refused = adapted.http.post(TEXT, json=body)
    assert "have changed since it was loaded" in refused.json()["error"]["message"]
    requests = re.findall(r"localhost:8000(/v1/\S+) .* -d '(.*)'", printed)
    assert len(requests) == 2
    for route, data in requests:
        assert adapted.http.post(route, content=data).status_code == 200
    assert text_of(answer(adapted, "swapped", seed=1)) != before
    run("adapters", "remove", "swapped")
    assert adapted.http.post(TEXT, json=body).status_code == 404


def test_a_broken_adapter_of_the_data_folder_says_why(adapted: App, shelf: Path) -> None:
    folder = adapted.data_dir / "adapters" / "cracked"
    shutil.copytree(shelf / "a00", folder)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
    refused = adapted.http.post(TEXT, json={"model": "cracked", "prompt": "a"})
    shutil.rmtree(folder)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "adapter_unusable")
    assert "cannot read" in error["message"]
