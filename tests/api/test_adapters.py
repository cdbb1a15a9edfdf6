"""Adapters at run time: loaded, mixed, unloaded and counted."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
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
TEXT = "/v1/completions"


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
    """An app with two adapters that may load more of the shelf, and has room for a few."""
    app = start_app(adapter_dirs=(shelf,), adapter_cache_mb=0.06)
    load(app, "fox", shelf / "a00")
    load(app, "owl", shelf / "a01")
    return app


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


def load(server: App, name: str, folder: Path) -> int:
    body = {"lora_name": name, "lora_path": str(folder)}
    return server.http.post("/v1/load_lora_adapter", json=body).status_code


def unload(server: App, name: str) -> int:
    return server.http.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code


def models(server: App) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in server.http.get("/v1/models").json()["data"]}


def ask(server: App, model: str, **more: Any) -> httpx.Response:
    body = server.completion(**{"max_tokens": 12, "temperature": 0, **more}) | {"model": model}
    return server.http.post(TEXT, json=body)


def say(server: App, model: str) -> str:
    text: str = ask(server, model).raise_for_status().json()["choices"][0]["text"]
    return text


def test_an_adapter_answers_under_its_names_and_differs_from_the_base(adapted: App) -> None:
    assert len({say(adapted, name) for name in ("bundled", "fox", "owl")}) == 3
    assert say(adapted, "bundled:fox") == say(adapted, "fox")
    for name, adapter in (("bundled", None), ("fox", "fox"), ("bundled:fox", "fox")):
        found = ask(adapted, name).json()
        assert (found["model"], found["usage"]["energy"]["adapter"]) == (name, adapter)
    chunks = list(
        adapted.openai.chat.completions.create(
            model="fox", messages=[{"role": "user", "content": "Hi"}], max_tokens=5, stream=True
        )
    )
    assert {chunk.model for chunk in chunks} == {"fox"}
    row = adapted.row(chunks[0].id)
    assert (row.model, row.adapter, row.outcome) == ("bundled", "fox", "completed")


@pytest.mark.parametrize(
    ("model", "wrong", "adapter", "status"),
    [
        ("nobody", {"prompt": [9] * 5000}, "nobody", 404),
        ("bundled:nobody", {}, "nobody", 404),
        ("fox:bundled", {}, None, 404),
        ("bundled:", {}, None, 404),
        (":fox", {}, None, 404),
        ("a b" * 99, {}, None, 404),
        ("bundled:fox", {"max_tokens": 10**6}, "fox", 400),
        ("fox", {"prompt": ""}, "fox", 400),
        ("fox", {"stream_options": {}}, "fox", 400),
        ("fox", {"temperature": 9}, "fox", 400),
        ("fox", {"logit_bias": {"99999": 1}}, "fox", 400),
    ],
)
def test_rows_of_refused_requests_name_their_adapter(
    adapted: App, model: str, wrong: dict[str, Any], adapter: str | None, status: int
) -> None:
    """If it could be one's name. Who is unknown is so before the prompt is looked at."""
    refused = ask(adapted, model, **wrong)
    assert refused.status_code == status
    row = adapted.row(refused.headers["X-Request-Id"])
    assert (row.outcome, row.http_status, row.model) == ("refused", status, "bundled")
    assert row.adapter == adapter
    if status == 404:
        assert refused.json()["error"]["code"] == "model_not_found"
        assert adapted.http.get(f"/v1/models/{model}").status_code == 404
    assert models(adapted)["fox"]["requests_in_flight"] == 0


def test_models_show_the_adapters(adapted: App, shelf: Path) -> None:
    found = models(adapted)
    assert set(found) == {"bundled", "fox", "owl"}
    fox = found["fox"]
    assert (fox["parent"], fox["root"], fox["rank"]) == ("bundled", str(shelf / "a00"), 2)
    assert fox["adapter_bytes"] == 4 * fox["parameters"] > 0
    assert (fox["resident"], fox["requests_in_flight"]) == (True, 0)
    assert adapted.openai.models.retrieve("bundled:fox").id == "fox"


def test_receipts_sums_metrics_and_report_name_the_adapter(adapted: App, run: Run) -> None:
    request_id = ask(adapted, "fox").json()["id"]
    assert adapted.row(request_id).adapter == "fox"
    assert adapted.http.get(f"/v1/energy/{request_id}").json()["adapter"] == "fox"
    sums = adapted.http.get("/v1/energy", params={"group_by": "adapter"}).json()["data"]
    assert next(row for row in sums if row["group"] == "fox")["energy_joules"] > 0
    adapters = [name for name in adapted.metrics() if "energy_joules_total" in name]
    assert any('adapter="fox"' in name and 'model="bundled"' in name for name in adapters)
    assert "fox" in run("report", "--group-by", "adapter")[1]


def test_an_adapter_pays_for_its_flops(adapted: App) -> None:
    """Whatever the adapter, the same tokens; the prompt is computed each time."""
    firsts = iter(range(10, 40))
    for name in ("fox", "owl"):
        asked = [ask(adapted, m, prompt=[next(firsts), *range(40, 60)]) for m in ("bundled", name)]
        base, own = (found.json()["usage"]["energy"]["flops"] for found in asked)
        extra = 2 * models(adapted)[name]["parameters"] * (21 + 11)
        assert own - base == pytest.approx(extra, rel=0.2, abs=0.01 * base)


@pytest.mark.parametrize(
    ("name", "path", "more", "param"),
    [
        ("fox", "{shelf}/a02", {}, "lora_path"),
        ("a/b", "{shelf}/a02", {}, "lora_name"),
        ("bundled", "{shelf}/a02", {}, "lora_name"),
        ("x", "/etc", {}, "lora_path"),
        ("x", "{shelf}/../..", {}, "lora_path"),
        ("x", "{shelf}/nowhere", {}, "lora_path"),
        ("x", "", {}, "lora_path"),
        ("x", "{shelf}/a02", {"lora_path": None}, "lora_path"),
        ("x", "{shelf}/a02", {"load_inplace": True}, "load_inplace"),
    ],
)
def test_bad_loads_are_refused_and_change_nothing(
    adapted: App, shelf: Path, name: str, path: str, more: dict[str, Any], param: str
) -> None:
    before = models(adapted)
    body = {"lora_name": name, "lora_path": path.format(shelf=shelf), **more}
    refused = adapted.http.post("/v1/load_lora_adapter", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert models(adapted) == before
    gone = adapted.http.post("/v1/unload_lora_adapter", json={"lora_name": "x"})
    assert (gone.status_code, gone.json()["error"]["param"]) == (404, "lora_name")


def test_loading_and_unloading_while_others_stream(adapted: App, shelf: Path) -> None:
    """Their answers are those they get in peace."""
    names = ("fox", "owl", "bundled") * 9
    alone = {name: say(adapted, name) for name in set(names)}

    def stream(name: str) -> tuple[str, str]:
        chunks = adapted.openai.completions.create(
            model=name, prompt="Once upon a time", max_tokens=12, temperature=0, stream=True
        )
        return name, "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)

    with ThreadPoolExecutor(9) as pool:
        running = [pool.submit(stream, name) for name in names]
        for i in range(6):
            assert load(adapted, f"guest{i}", shelf / f"a{i + 4:02}") == 200
            say(adapted, f"guest{i}")
            assert unload(adapted, f"guest{i}") == 200
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
        assert unload(adapted, "brief") == 200
        assert ask(adapted, "brief").status_code == 404
        adapted.machine.go_on()
        events = [line for line in running.iter_lines() if line]
    assert '"finish_reason":"length"' in "".join(events)
    assert events[-1] == "data: [DONE]"


def test_a_client_that_leaves_lets_go_of_its_adapter(adapted: App) -> None:
    with adapted.machine.held(after_steps=3):
        body = adapted.completion(max_tokens=900, n=16) | {"model": "fox"}
        client = adapted.begin(TEXT, body)
        until(lambda: models(adapted)["fox"]["requests_in_flight"] == 1, "the request")
        client.leave()
    until(lambda: models(adapted)["fox"]["requests_in_flight"] == 0, "the reference's return")


def test_many_adapters_and_little_memory(adapted: App, shelf: Path) -> None:
    """Twenty are known, a few fit; each answers the same whenever it is asked."""
    names = [f"many{i:02}" for i in range(MANY)]
    assert {load(adapted, name, shelf / f"a{i:02}") for i, name in enumerate(names)} == {200}
    alone = [say(adapted, name) for name in names]
    with ThreadPoolExecutor(MANY) as pool:
        together = list(pool.map(lambda name: say(adapted, name), names))
    found = [models(adapted)[name] for name in names]
    for name in names:
        unload(adapted, name)
    assert together == alone
    assert len(set(alone)) == MANY
    held = [one["adapter_bytes"] for one in found if one["resident"]]
    assert 0 < sum(held) <= 6e4 < sum(one["adapter_bytes"] for one in found)
    assert not any(one["requests_in_flight"] for one in found)


def test_adapters_of_the_data_folder_need_no_loading(adapted: App, shelf: Path, run: Run) -> None:
    """`greenllm adapters add` and `remove` beside a running server."""
    assert run("adapters", "add", "stored", str(shelf / "a03"))[0] == 0
    code, said = run("adapters", "add", "stored", str(shelf / "a04"))
    assert (code, "exists" in said) == (2, True)
    assert models(adapted)["stored"]["resident"] is False
    say(adapted, "stored")
    assert models(adapted)["stored"]["resident"] is True
    assert "stored" in run("adapters", "list")[1]
    assert run("adapters", "remove", "stored")[0] == 0
    assert ask(adapted, "stored").status_code == 404
    assert "stored" not in models(adapted)


def test_what_add_prints_brings_a_running_server_the_new_adapter(
    adapted: App, shelf: Path, run: Run
) -> None:
    run("adapters", "add", "swapped", str(shelf / "a03"))
    before = say(adapted, "swapped")
    run("adapters", "remove", "swapped")
    _, printed = run("adapters", "add", "swapped", str(shelf / "a04"))
    refused = ask(adapted, "swapped").json()["error"]
    assert "have changed since it was loaded" in refused["message"]
    requests = re.findall(r"localhost:8000(/v1/\S+) -H '([^:]+): ([^']+)' -d '(.*)'", printed)
    assert len(requests) == 2
    for route, name, value, data in requests:
        assert adapted.http.post(route, content=data, headers={name: value}).status_code == 200
    assert say(adapted, "swapped") != before
    run("adapters", "remove", "swapped")
    assert ask(adapted, "swapped").status_code == 404


def test_a_broken_adapter_of_the_data_folder_says_why(adapted: App, shelf: Path) -> None:
    folder = adapted.data_dir / "adapters" / "cracked"
    shutil.copytree(shelf / "a00", folder)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
    refused = ask(adapted, "cracked")
    shutil.rmtree(folder)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "adapter_unusable")
    assert "cannot read" in error["message"]


def test_a_pipe_in_the_data_folder_holds_nobody_up(adapted: App, shelf: Path) -> None:
    """Nobody writes to it: who opened it would wait for ever."""
    home = adapted.data_dir / "adapters" / "pipe"
    home.mkdir(parents=True)
    os.mkfifo(home / "adapter_config.json")
    assert "pipe" not in models(adapted)
    answer = adapted.http.post(TEXT, json=adapted.completion(model="pipe"))
    assert answer.status_code == 400, answer.text
    assert "not a regular file" in answer.json()["error"]["message"]


def test_a_pattern_without_end_is_refused_by_name(adapted: App, shelf: Path) -> None:
    """Searched for in a module's path, it would hold the interpreter's lock for ever."""
    home = adapted.data_dir / "adapters" / "endless"
    shutil.copytree(shelf / "a02", home)
    config = json.loads((home / "adapter_config.json").read_text())
    config["rank_pattern"] = {"([a-z0-9_.]+)+!": 4}
    (home / "adapter_config.json").write_text(json.dumps(config))
    answer = adapted.http.post(TEXT, json=adapted.completion(model="endless"))
    assert answer.status_code == 400, answer.text
    assert "rank_pattern" in answer.json()["error"]["message"]
