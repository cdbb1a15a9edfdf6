"""The OpenAPI document, and what it says of bodies and parameters.

That statuses and headers are in it is looked at in every test that uses the app.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from tests.api.shapes import body_schema, resolved

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

CHAT, TEXT, JOBS = "/v1/chat/completions", "/v1/completions", "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def document(server: App) -> Any:
    return server.http.get("/openapi.json").json()


def references(part: Any) -> Iterator[str]:
    """Every `$ref` in a part of the document."""
    if isinstance(part, dict):
        yield from (part[name] for name in part if name == "$ref")
        yield from (found for value in part.values() for found in references(value))
    elif isinstance(part, list):
        yield from (found for value in part for found in references(value))


def test_every_reference_leads_somewhere(document: Any) -> None:
    found = set(references(document))
    assert len(found) > 10
    for reference in found:
        assert resolved(document, {"$ref": reference})["type"]
    assert "$defs" not in str(document)


def test_bodies_are_judged_as_the_server_judges_them(server: App, document: Any) -> None:
    good, wrong = server.chat(stop=["a"]), server.chat(temperature="hot")
    schema = {**body_schema(document, CHAT), "components": document["components"]}
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, "surprise": 1}, schema)


def test_answers_are_told_by_type_and_header(document: Any) -> None:
    answers = document["paths"][CHAT]["post"]["responses"]
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"X-Request-Id", "X-Energy-Joules", "X-Carbon-Gco2e", "Link"} <= set(
        answers["200"]["headers"]
    )
    assert "Retry-After" in answers["429"]["headers"]
    assert "422" not in str(document)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
def test_no_page_loads_scripts_from_elsewhere(server: App, path: str) -> None:
    assert server.http.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/v1/models/", "/health/", "/v1/files/"])
def test_nobody_is_sent_elsewhere(server: App, path: str) -> None:
    answer = server.http.get(path, headers={"Host": "localhost"})
    assert (answer.status_code, "Location" in answer.headers) == (404, False)


@pytest.mark.parametrize(
    ("path", "given", "name", "code"),
    [
        (JOBS, {"limit": "abc"}, "limit", "invalid_value"),
        (JOBS, {"limit": "1.5"}, "limit", "invalid_value"),
        (JOBS, {"limit": "9" * 5000}, "limit", "invalid_value"),
        (JOBS, {"limit": "0"}, "limit", None),
        (JOBS, {"page": "1"}, "page", "unknown_parameter"),
        ("/v1/files", {"purpose": "fine-tune"}, "purpose", "unknown_parameter"),
        ("/v1/models", {"x" * 1000: "1"}, "x" * 128, "unknown_parameter"),
        ("/v1/energy", {"to": "1"}, "to", "unknown_parameter"),
        ("/tokenizer_info", {"model": "a"}, "model", "unknown_parameter"),
    ],
)
def test_parameters_of_a_query_are_refused_by_name(
    server: App, path: str, given: dict[str, str], name: str, code: str | None
) -> None:
    answer = server.http.get(path, params=given)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (name, code)


def test_a_key_is_looked_at_before_parameters(start_app: StartApp) -> None:
    locked = start_app(api_keys=("sk-a",))
    for path, query in ((JOBS, "limit=abc"), (JOBS, "page=1"), ("/v1/energy", "to=1")):
        assert locked.http.get(f"{path}?{query}").status_code == 401
    assert locked.http.get("/openapi.json").status_code == 401
    mine = {"Authorization": "Bearer sk-a"}
    assert locked.http.get("/openapi.json", headers=mine).json()["openapi"]
