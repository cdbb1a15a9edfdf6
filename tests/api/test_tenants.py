"""Two keys beside each other: neither sees, uses or changes what is the other's, on any route."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from serving.app import create_app
from serving.config import HttpOptions
from serving.jobs.store import adapter_folder
from serving.keys.rules import RULES
from tests.api.keys import As, make_key, routes_of, write_keys
from tests.waiting import until

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

pytestmark = pytest.mark.usefixtures("fake_training")
JOBS = "/v1/fine_tuning/jobs"
ENDLESS = {"steps": 10**5}
PARAMETER = re.compile(r"\{(\w+)(:path)?\}")
ROUTES = sorted(
    set(routes_of(create_app(lambda loop: pytest.fail("it is not started"), HttpOptions())))
)
WITH_IDS = [(method, path) for method, path in ROUTES if "{" in path]


def filled(path: str, **ids: str) -> str:
    """A path with ids; a parameter that is new here needs one, so that it is tested too."""
    return PARAMETER.sub(lambda found: ids[found[1]], path)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, save_adapter: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    for seed, name in enumerate(("own", "other", "shared")):
        save_adapter(root / name, seed=seed)
    return root


@pytest.fixture(scope="module")
def app(
    start_app: StartApp,
    fake_training: None,
    shelf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> App:
    keys = write_keys(
        tmp_path_factory.mktemp("keys") / "keys.json",
        make_key("ada", team="red"),
        make_key("bob"),
        make_key("ops", frozenset({"admin"})),
        make_key("watch", frozenset({"metrics"})),
    )
    return start_app(keys_file=keys, adapter_dirs=(shelf,))


@pytest.fixture(scope="module")
def ada(app: App) -> As:
    return As(app, "ada")


@pytest.fixture(scope="module")
def bob(app: App) -> As:
    return As(app, "bob")


@pytest.fixture(scope="module")
def ops(app: App) -> As:
    return As(app, "ops")


@pytest.fixture(scope="module")
def job_id(ada: As) -> str:
    """A job of Ada's that goes on."""
    return str(ada.train(ada.upload(), **ENDLESS).raise_for_status().json()["id"])


@pytest.fixture(scope="module")
def adapter(ada: As, shelf: Path) -> str:
    """An adapter that Ada has loaded."""
    return str(ada.load("ada-own", shelf / "own").raise_for_status().json()["id"])


@pytest.fixture(scope="module")
def trained(ada: As) -> str:
    """A model that Ada has trained."""
    made = ada.train(ada.upload()).raise_for_status().json()["id"]

    def model() -> str | None:
        found: str | None = ada.get(f"{JOBS}/{made}").json()["fine_tuned_model"]
        return found

    return until(model, "a model")


def test_every_route_says_who_may_use_it() -> None:
    assert {f"{method} {path}" for method, path in ROUTES} == set(RULES)


@pytest.mark.parametrize("name", ["ada", "ops", "watch"])
@pytest.mark.parametrize("route", RULES)
def test_a_key_needs_the_scope(app: App, route: str, name: str) -> None:
    has = {"ada": {"inference", "finetune"}, "ops": {"admin"}, "watch": {"metrics"}}[name]
    rule, (method, path) = RULES[route], route.split()
    ids = dict.fromkeys(("file_id", "job_id", "request_id", "model_id"), "none")
    answer = As(app, name).ask(method, filled(path, **ids))
    may = rule.is_open or "admin" in has or bool(has & rule.scopes)
    assert (answer.status_code != 403) == may
    if not may:
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "missing_scope")


def test_a_route_without_a_rule_is_for_administrators(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RULES, "GET /v1/models")
    assert As(app, "ada").get("/v1/models").status_code == 403
    assert As(app, "ops").get("/v1/models").status_code == 200


@pytest.mark.parametrize(("method", "path"), WITH_IDS)
def test_what_is_anothers_is_not_there(
    ada: As, bob: As, ops: As, job_id: str, adapter: str, method: str, path: str
) -> None:
    ids = {
        "job_id": job_id,
        "model_id": adapter,
        "file_id": ada.upload(),
        "request_id": ada.complete().json()["id"],
    }
    place = filled(path, **ids)
    refused = bob.ask(method, place)
    unknown = bob.ask(method, filled(path, **{name: f"{ids[name][:-4]}0000" for name in ids}))
    assert refused.status_code == unknown.status_code == 404
    assert refused.json()["error"]["code"] == unknown.json()["error"]["code"]
    for owner in (ada, ops) if method == "GET" else (ada,):
        assert owner.ask(method, place).status_code != 404


def test_administrators_change_what_is_anothers(ada: As, ops: As) -> None:
    file_id = ada.upload()
    assert ops.ask("DELETE", f"/v1/files/{file_id}").status_code == 200
    assert ada.get(f"/v1/files/{file_id}").status_code == 404


def test_lists_hold_what_is_the_callers(
    ada: As, bob: As, ops: As, job_id: str, adapter: str, trained: str
) -> None:
    file_id = ada.upload()
    for path, mine in (("/v1/files", file_id), (JOBS, job_id), ("/v1/models", adapter)):
        assert mine in ada.ids(path)
        assert mine in ops.ids(path)
        assert mine not in bob.ids(path)
    assert bob.ids("/v1/models") == {"bundled"}
    assert trained in ada.ids("/v1/models")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_answer_has_a_word_of_anothers(
    app: App, ada: As, bob: As, shelf: Path, method: str, path: str
) -> None:
    """Whatever Ada has named, told or loaded is a secret; Bob asks every route, for what is his."""
    if "secret-adapter" not in ada.ids("/v1/models"):
        ada.load("secret-adapter", shelf / "own")
        file_id = ada.upload(b'{"text": "secret"}')
        body = {"model": "bundled", "training_file": file_id, "suffix": "secret", "recipe": ENDLESS}
        ada.post(JOBS, json={**body, "metadata": {"a": "secret"}})
        ada.complete(model="secret-adapter", user="secret", metadata={"a": "secret"})
    ids = {
        "job_id": bob.train(own := bob.upload(), **ENDLESS).json()["id"],
        "model_id": "bundled",
        "file_id": own,
        "request_id": bob.complete().json()["id"],
    }
    more: dict[str, Any] = {"json": {}} if method == "POST" else {}
    for given in (more, {**more, "params": {"group_by": "user"}}):
        answer = bob.ask(method, filled(path, **ids), **given)
        told = answer.text + str(answer.headers)
        assert "secret" not in told
        assert str(app.data_dir) not in told
    bob.post(f"{JOBS}/{ids['job_id']}/cancel")


def test_what_bodies_name_is_not_there_either(
    app: App, ada: As, bob: As, adapter: str, trained: str
) -> None:
    file_id = ada.upload()
    for refused in (
        bob.train(file_id),
        bob.post(JOBS, json={"model": "bundled", "training_file": bob.upload(),
                             "validation_file": file_id}),
    ):  # fmt: skip
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "file_not_found")
    for model in (adapter, f"bundled:{adapter}", trained, adapter_folder(trained)):
        assert ada.complete(model=model).status_code == 200
        for refused in (
            bob.complete(model=model),
            bob.post("/tokenize", json={"model": model, "prompt": "a"}),
            bob.post("/detokenize", json={"model": model, "tokens": [5]}),
        ):
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "model_not_found"


def test_an_adapter_stays_its_owners(
    app: App, ada: As, bob: As, adapter: str, trained: str
) -> None:
    home = app.data_dir / "adapters" / adapter_folder(trained)
    copied = bob.load("mine", home)
    assert (copied.status_code, copied.json()["error"]["param"]) == (400, "lora_path")
    taken = bob.load(adapter, app.data_dir / "adapters")
    assert (taken.status_code, taken.json()["error"]["param"]) == (400, "lora_name")
    assert str(app.data_dir) not in taken.text
    assert bob.unload(adapter).status_code == 404
    entry = ada.get(f"/v1/models/{adapter}").json()
    assert (entry["owned_by"], entry["root"], entry["requests_in_flight"]) == ("ada", None, 0)
    assert ada.unload(adapter).status_code == 200
    assert ada.load(adapter, Path(app.data_dir / "nowhere")).status_code == 400


def test_what_an_administrator_loads_is_everybodys(ada: As, bob: As, ops: As, shelf: Path) -> None:
    assert ops.load("common", shelf / "shared").json()["root"] == str(shelf / "shared")
    entry = bob.get("/v1/models/common").json()
    assert (entry["owned_by"], entry["root"]) == ("greenllm", None)
    assert (entry["resident"], entry["requests_in_flight"]) == (None, None)
    assert bob.complete(model="common").status_code == 200
    assert bob.unload("common").status_code == 403
    assert ops.unload("common").status_code == 200


@pytest.mark.parametrize("shares", [False, True])
def test_prompts_of_others_are_not_found_in_the_cache(
    start_app: StartApp, tmp_path: Path, shares: bool
) -> None:
    keys = write_keys(tmp_path / "keys.json", make_key("ada"), make_key("bob"))
    app = start_app(keys_file=keys, share_prefix_cache=shares)
    ada, bob = As(app, "ada"), As(app, "bob")
    secret = list(range(5, 70))
    assert ada.receipt(secret)["cached_tokens"] == 0
    guess = bob.receipt([*secret[:64], 3])
    assert guess["cached_tokens"] == (64 if shares else 0)
    assert ada.receipt(secret)["cached_tokens"] > 0, "one's own prompts are found"


def test_the_servers_own_figures_are_for_administrators(ada: As, ops: As, app: App) -> None:
    assert ada.get("/v1/energy").json()["session"] is None
    assert ops.get("/v1/energy").json()["session"]["meter_joules"] > 0
    assert ada.get("/v1/models/bundled").json()["root"] is None
    assert ops.get("/v1/models/bundled").json()["root"] == str(app.data_dir)


def test_sums_are_the_callers_and_an_administrators_everybodys(ada: As, bob: As, ops: As) -> None:
    ada.complete(user="u-1", metadata={"for": "test"})
    bob.complete(user="u-2")

    def groups(who: As, by: str) -> dict[str | None, int]:
        rows = who.get("/v1/energy", params={"group_by": by}).json()["data"]
        return {row["group"]: row["requests"] for row in rows}

    assert set(groups(ada, "key")) == {"ada"}
    assert {"ada", "bob"} <= set(groups(ops, "key"))
    assert set(groups(ada, "team")) == {"red"}
    assert {"u-1", "u-2"} <= set(groups(ops, "user"))
    assert groups(bob, "user")["u-2"] == 1
    assert "u-1" not in groups(bob, "user")


def test_labels_are_on_the_receipt_also_of_a_refused_request(app: App, ada: As) -> None:
    labels: dict[str, Any] = {"user": "u-3", "metadata": {"project": "fox"}}
    found = ada.receipt(**labels)
    assert {name: found[name] for name in labels} == labels
    refused = ada.complete(temperature=9, **labels)
    row = app.row(refused.headers["X-Request-Id"])
    assert (row.key, row.team, row.user, row.metadata) == ("ada", "red", *labels.values())
    for wrong in ({"user": "u" * 257}, {"metadata": {str(i): "" for i in range(17)}}):
        answer = ada.complete(**wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(wrong)))


def test_what_has_no_owner_is_for_administrators(start_app: StartApp, tmp_path: Path) -> None:
    """As what was made before there were owners, or while no keys were required."""
    before = start_app(folder=tmp_path)
    nobody = As(before, "nobody")
    file_id = nobody.upload()
    about = before.data_dir / "files" / f"{file_id}.json"
    about.write_text(json.dumps({k: v for k, v in json.loads(about.read_text()).items()
                                 if k != "owner"}))  # fmt: skip
    made = nobody.train(file_id).json()["id"]
    until(lambda: nobody.get(f"{JOBS}/{made}").json()["fine_tuned_model"], "a model")
    model = nobody.get(f"{JOBS}/{made}").json()["fine_tuned_model"]
    (tmp_path / "adapters" / adapter_folder(model) / "owner.json").unlink()
    request_id = nobody.complete().json()["id"]
    before.stop()
    keys = write_keys(tmp_path / "k.json", make_key("ada"), make_key("ops", frozenset({"admin"})))
    now = start_app(folder=tmp_path, keys_file=keys)
    for path in (
        f"/v1/files/{file_id}", f"{JOBS}/{made}", f"/v1/energy/{request_id}",
        f"/v1/models/{model}",
    ):  # fmt: skip
        assert As(now, "ada").get(path).status_code == 404
        assert As(now, "ops").get(path).status_code == 200


def test_what_administrators_change_is_in_the_audit_log(
    app: App, ada: As, ops: As, shelf: Path
) -> None:
    """Each route that changes something; a new one fails here until it is asked, and notes it."""
    log = app.data_dir / "audit.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    file_id = ops.upload()
    made = ops.train(file_id, **ENDLESS).json()["id"]
    asked = {
        "POST /v1/files": file_id,
        f"POST {JOBS}": made,
        f"POST {JOBS}/{{job_id}}/pause": made,
        f"POST {JOBS}/{{job_id}}/resume": made,
        f"POST {JOBS}/{{job_id}}/cancel": made,
        "DELETE /v1/files/{file_id}": file_id,
        "POST /v1/load_lora_adapter": "audited",
        "POST /v1/unload_lora_adapter": "audited",
    }
    changing = {route for route, rule in RULES.items() if "finetune" in rule.scopes}
    assert {route for route in changing if not route.startswith("GET")} == set(asked)
    ops.post(f"{JOBS}/{made}/pause")
    until(lambda: ops.get(f"{JOBS}/{made}").json()["status"] == "paused", "a paused job")
    assert ops.post(f"{JOBS}/{made}/pause").status_code == 400, "what is refused changes nothing"
    ops.post(f"{JOBS}/{made}/resume")
    ops.post(f"{JOBS}/{made}/cancel")
    ops.ask("DELETE", f"/v1/files/{file_id}")
    ops.load("audited", shelf / "other")
    ops.unload("audited")
    ada.upload()
    lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    assert {line["who"] for line in lines} == {"ops"}
    assert [line["did"] for line in lines] == [
        "file.upload", "job.create", "job.pause", "job.resume", "job.cancel",
        "file.delete", "adapter.load", "adapter.unload",
    ]  # fmt: skip
    assert all(what in " ".join(line["what"] for line in lines) for what in asked.values())
    assert log.stat().st_mode & 0o777 == 0o600
