"""What a key may use: answers tell it, refusals say when to come back, restarts forget nothing."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from finetune.recipe import Recipe
from serving.keys.limits import DAY_S
from serving.openai.recipes import MOST, OURS
from tests.api.keys import As, limited, make_key, write_keys
from tests.waiting import until

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

pytestmark = pytest.mark.usefixtures("fake_training")
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def app(start_app: StartApp, tmp_path_factory: pytest.TempPathFactory) -> App:
    keys = write_keys(
        tmp_path_factory.mktemp("keys") / "keys.json",
        limited("requests", requests_per_minute=2),
        limited("tokens", tokens_per_minute=20),
        limited("one", concurrent_requests=1),
        limited("joules", joules_per_day=0.05),
        make_key("free"),
        make_key("slow"),
        make_key("watch", frozenset({"metrics"})),
    )
    return start_app(keys_file=keys, max_files=2, max_stored_mb=0.01, max_open_jobs=2)


def refusals(app: App, limit: str) -> float:
    text = As(app, "watch").get("/metrics").text
    name = f'greenllm_requests_over_limit_total{{limit="{limit}"}} '
    return float(text.partition(f"\n{name}")[2].splitlines()[0])


def test_answers_say_what_is_left_and_refusals_when_to_come_back(app: App) -> None:
    key, before = As(app, "requests"), refusals(app, "requests_per_minute")
    answers = [key.complete(), key.get("/v1/models"), key.complete()]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == [*"100"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"2"}
    assert answers[0].headers["x-ratelimit-reset-requests"].endswith("s")
    error = answers[2].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 30
    assert refusals(app, "requests_per_minute") == before + 1
    refused_id = answers[2].headers["X-Request-Id"]
    assert refused_id not in {row.request_id for row in app.rows()}, "it could fill the disk"


def test_streams_say_it_too(app: App) -> None:
    answer = As(app, "tokens").complete(stream=True)
    assert answer.headers["x-ratelimit-limit-tokens"] == "20"
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) <= 20
    assert answer.text.endswith("data: [DONE]\n\n")


def test_tokens_are_those_of_the_receipts(app: App) -> None:
    key = As(app, "tokens")
    answer = key.complete(list(range(5, 35)), max_tokens=10)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
    refused = key.complete()
    assert refused.status_code == 429
    assert "20 tokens per minute" in refused.json()["error"]["message"]
    assert key.get("/v1/models").status_code == 200, "what uses no tokens goes on"


def test_keys_without_limits_have_no_such_headers(app: App) -> None:
    names = As(app, "free").complete().headers
    assert not any(name.startswith("x-ratelimit") for name in names)


def test_requests_at_once_are_counted_while_they_run(app: App) -> None:
    key = As(app, "one")
    with app.machine.held():
        begun = key.begin(max_tokens=1)
        until(lambda: app.machine.waits, "a step")
        refused = key.complete()
        assert refused.status_code == 429
        assert "1 concurrent requests" in refused.json()["error"]["message"]
        assert key.post("/tokenize", json={"prompt": "a"}).status_code == 200
    assert begun.response().read()
    assert key.complete().status_code == 200


def test_a_days_joules_outlive_the_server(start_app: StartApp, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", limited("ada", joules_per_day=0.15))
    first = start_app(folder=tmp_path, keys_file=keys)
    for status in (200, 200, 429):
        answer = As(first, "ada").complete()
        assert answer.status_code == status
    assert int(answer.headers["Retry-After"]) <= DAY_S
    first.stop()
    again = start_app(folder=tmp_path, keys_file=keys)
    refused = As(again, "ada").complete()
    assert (refused.status_code, refused.headers["x-ratelimit-remaining-joules"]) == (429, "0")
    file_id = As(again, "ada").upload()
    assert As(again, "ada").train(file_id).status_code == 429, "training needs joules too"


def test_training_spends_joules_too(start_app: StartApp, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", limited("ada", joules_per_day=1.5))
    first = start_app(folder=tmp_path, keys_file=keys)
    ada = As(first, "ada")
    made = ada.train(ada.upload()).json()["id"]
    until(lambda: ada.get(f"{JOBS}/{made}").json()["fine_tuned_model"], "a model of two joules")
    assert ada.complete().status_code == 429
    first.stop()
    again = As(start_app(folder=tmp_path, keys_file=keys), "ada")
    assert again.complete().status_code == 429


def test_wrong_keys_are_counted(app: App) -> None:
    def counted() -> float:
        text = As(app, "watch").get("/metrics").text
        return float(text.partition("\ngreenllm_authentication_failures_total ")[2].split()[0])

    before = counted()
    for name in ("nobody", "somebody"):
        refused = As(app, name).get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert app.http.get("/v1/models").headers["WWW-Authenticate"] == "Bearer"
    assert counted() == before + 3


def test_wrong_keys_are_remembered_by_address_and_missing_ones_are_not(
    start_app: StartApp, tmp_path: Path
) -> None:
    app = start_app(keys_file=write_keys(tmp_path / "keys.json", make_key("ada")))
    assert app.http.get("/v1/models").status_code == 401
    assert As(app, "ada").get("/v1/models").status_code == 200
    assert app.access.attempts.num_addresses == 0
    assert As(app, "eve").get("/v1/models").status_code == 401
    assert app.access.attempts.num_addresses == 1


def test_each_key_keeps_a_number_of_files_and_bytes(app: App) -> None:
    key = As(app, "free")
    kept = [key.upload() for _ in range(2)]
    refused = key.put(b"{}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert refused.headers["X-Should-Retry"] == "false"
    assert key.ids("/v1/files") == set(kept)
    assert As(app, "slow").put(b"{}").status_code == 200, "the other key has its own room"
    key.ask("DELETE", f"/v1/files/{kept[0]}")
    assert key.put(b" " * 11_000).status_code == 429
    assert key.put(b" " * 9_000).status_code == 200


def test_each_key_has_a_number_of_open_jobs_whose_data_count(app: App) -> None:
    key = As(app, "slow")
    file_id = key.upload(b" " * 4_000)
    made = [key.train(file_id, steps=10**5).json()["id"] for _ in range(2)]
    refused = key.train(file_id)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    key.ask("DELETE", f"/v1/files/{file_id}")
    assert key.put(b" " * 4_000).status_code == 429, "two jobs have copied as much"
    data = [app.data_dir / "fine_tuning" / job_id / "training.jsonl" for job_id in made]
    assert all(path.exists() for path in data)
    for job_id in made:
        key.post(f"{JOBS}/{job_id}/cancel")
    until(lambda: not any(path.exists() for path in data), "jobs without their data")
    assert key.put(b" " * 4_000).status_code == 200


def test_a_job_that_takes_too_long_is_ended(start_app: StartApp) -> None:
    app = start_app(max_job_hours=1e-9)
    key = As(app, "anybody")
    made = key.train(key.upload(), steps=10**5).json()["id"]

    def error() -> Any:
        return key.get(f"{JOBS}/{made}").json()["error"]

    assert "--max-job-hours" in until(error, "the end of the job")["message"]


def test_every_number_of_a_recipe_has_a_bound_or_is_the_servers() -> None:
    numbers = {spec.name for spec in fields(Recipe)
               if {"int", "float"} & {*str(spec.type).replace("|", " ").split()}}  # fmt: skip
    assert numbers - OURS == set(MOST)


@pytest.mark.parametrize("name", sorted(MOST))
def test_numbers_beyond_their_bound_are_refused_by_name(server: App, name: str) -> None:
    more = {"eval_every": 1} if name == "patience" else {}
    recipe = {name: MOST[name] * 10, **more}
    body = {"model": "bundled", "training_file": upload(server), "recipe": recipe}
    refused = server.http.post(JOBS, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, f"recipe.{name}")


@pytest.mark.parametrize(
    ("recipe", "param"),
    [
        ({"epochs": 1e300}, "recipe.epochs"),
        ({"threads": 100_000}, "recipe.threads"),
        ({"sweep": "rank=4,100000"}, "recipe"),
        ({"sweep": ";".join(["rank=1,2,3,4"] * 20)}, "recipe.sweep"),
        ({"sweep": "x" * 1001}, "recipe.sweep"),
        ({"targets": ["q_proj"] * 65}, "recipe.targets"),
        *(
            ({name: value}, f"recipe.{name}")
            for name, value in (
                ("intensity_g_per_kwh", 0), ("intensity_source", "me"), ("zone", "SE"), ("pue", 1),
                ("meter", "none"), ("bill_idle", False),
            )
        ),
    ],
)  # fmt: skip
def test_what_would_take_the_machine_or_belongs_to_the_bill_is_refused(
    server: App, recipe: dict[str, Any], param: str
) -> None:
    body = {"model": "bundled", "training_file": upload(server), "recipe": recipe}
    refused = server.http.post(JOBS, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def upload(server: App) -> str:
    return As(server, "none").upload()
