"""Pages of other sites cannot use a server of this machine; bodies say what they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from greenllm.config import ConfigError
from serving.config import HttpOptions

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

TEXT, FILES, SITE = "/v1/completions", "/v1/files", "https://app.example"
EVIL, FORM, JOBS = "evil.example", "multipart/form-data; boundary=x", "/v1/fine_tuning/jobs"


def ask(server: App, **headers: str) -> tuple[int, str | None]:
    """Status and code of an answer to a request with these headers."""
    answer = server.http.post(TEXT, json=server.completion(max_tokens=1), headers=headers)
    error = answer.json().get("error", {})
    assert answer.headers["X-Request-Id"]
    return answer.status_code, error.get("code")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:8000", "127.8.9.1", "[::1]:80"]
)
def test_a_server_of_this_machine_has_its_names(server: App, host: str) -> None:
    assert ask(server, Host=host) == (200, None)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "10.0.0.5", "[::2]", "127.0.0.1.evil.example"],
)
@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/nowhere"])
def test_and_no_others(server: App, host: str, path: str) -> None:
    answer = server.http.get(path, headers={"Host": host})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (403, "host_not_allowed")
    assert "--allowed-hosts" in error["message"]


@pytest.mark.parametrize(
    ("options", "host", "status"),
    [
        ({"allowed_hosts": ("gpu.lan",)}, "GPU.lan:8000", 200),
        ({"allowed_hosts": ("gpu.lan",)}, "localhost", 200),
        ({"allowed_hosts": ("*",)}, "evil.example", 200),
        ({"host": "0.0.0.0"}, "gpu.lan", 200),
        ({"host": "0.0.0.0", "allowed_hosts": ("gpu.lan",)}, "gpu.lan", 200),
        ({"host": "0.0.0.0", "allowed_hosts": ("gpu.lan",)}, "evil.example", 403),
        ({"host": "10.0.0.5", "allowed_hosts": ("gpu.lan",)}, "10.0.0.5:8000", 200),
    ],
)
def test_names_can_be_given(
    start_app: StartApp, options: dict[str, str], host: str, status: int
) -> None:
    assert ask(start_app(**options), Host=host)[0] == status


@pytest.mark.parametrize(
    "origin", [SITE, "null", "http://localhost:1", "http://localhost.evil.example"]
)
def test_pages_of_other_sites_are_refused(server: App, origin: str) -> None:
    assert ask(server, Origin=origin) == (403, "origin_not_allowed")
    assert server.http.get("/v1/models", headers={"Origin": origin}).status_code == 403
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = server.http.options(TEXT, headers=preflight)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_pages_of_the_server_itself_are_not(server: App) -> None:
    assert ask(server, Host="localhost:8000", Origin="http://localhost:8000")[0] == 200


def test_sites_can_be_named(start_app: StartApp) -> None:
    server = start_app(allowed_origins=(SITE,))
    assert ask(server, Origin=SITE) == (200, None)
    assert ask(server, Origin="https://evil.example") == (403, "origin_not_allowed")
    asked = {
        "Origin": SITE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    preflight = server.http.options(TEXT, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == SITE
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]
    answer = server.http.get("/v1/models", headers={"Origin": SITE})
    assert answer.headers["Access-Control-Allow-Origin"] == SITE
    assert answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/"])
def test_sites_are_written_as_browsers_write_them(origin: str) -> None:
    with pytest.raises(ConfigError, match="--allowed-origins"):
        HttpOptions(allowed_origins=(origin,))


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""],
)
@pytest.mark.parametrize(
    "path", [TEXT, "/tokenize", "/v1/load_lora_adapter", "/v1/fine_tuning/jobs"]
)
def test_a_body_says_that_it_is_json(server: App, path: str, kind: str) -> None:
    content = json.dumps(server.completion()).encode()
    headers = {"Content-Type": kind} if kind else {}
    answer = server.http.post(path, content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in error["message"]
    if path == TEXT:
        assert server.row(answer.headers["X-Request-Id"]).http_status == 415


def test_what_else_is_said_of_json_does_no_harm(server: App) -> None:
    content = json.dumps(server.completion(max_tokens=1)).encode()
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert server.http.post(TEXT, content=content, headers=headers).status_code == 200


def test_a_file_comes_in_a_form(server: App) -> None:
    answer = server.http.post(FILES, json={"purpose": "fine-tune"})
    assert answer.status_code == 415
    assert "multipart/form-data" in answer.json()["error"]["message"]
