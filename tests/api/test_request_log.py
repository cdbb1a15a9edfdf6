"""What the log tells of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from serving.keys.ring import fingerprint
from tests.api.machine import STEP_J
from tests.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from serving.request_log import Entry
    from tests.api.conftest import App, StartApp

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
KEY = "sk-log-4f1a"


def told_of(server: App, request_id: str) -> Entry:
    """What was told of a request, once its answer has ended."""

    def found() -> list[Entry]:
        return [entry for entry in server.told if entry.id == request_id]

    (entry,) = until(found, "the entry")
    return entry


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_answer_is_told_with_its_cost(server: App, path: str, stream: bool) -> None:
    body = server.chat() if path == CHAT else server.completion([5, 6, 7])
    answer = server.http.post(path, json={**body, "max_tokens": 4, "stream": stream})
    entry = told_of(server, answer.headers["X-Request-Id"])
    row = server.row(answer.headers["X-Request-Id"])
    assert (entry.method, entry.path, entry.status) == ("POST", path, 200)
    assert (entry.model, entry.key) == ("bundled", None)
    tokens = (row.prompt_tokens, row.completion_tokens)
    assert (entry.prompt_tokens, entry.completion_tokens) == tokens
    assert entry.joules == pytest.approx(row.total_j, rel=0.01)
    assert entry.joules == pytest.approx(row.completion_tokens * STEP_J)
    assert entry.ms > 0


def test_what_is_refused_is_told_without_what_it_said(server: App) -> None:
    body = {**server.completion("a secret"), "temperature": 9, "model": "secret"}
    answer = server.http.post(TEXT, json=body)
    entry = told_of(server, answer.headers["X-Request-Id"])
    assert (entry.status, entry.model, entry.joules) == (answer.status_code, None, None)
    assert "secret" not in str(server.told)


def test_keys_are_told_by_name_and_strangers_not(start_app: StartApp) -> None:
    locked = start_app(api_keys=(KEY,))
    for key, status in ((KEY, 200), ("sk-wrong", 401)):
        headers = {"Authorization": f"Bearer {key}"}
        assert locked.http.get("/v1/energy?since=1767225", headers=headers).status_code == status
    known, stranger = until(lambda: locked.told[1:] and locked.told, "both")
    assert (known.key, known.status, known.path) == (fingerprint(KEY.encode()), 200, "/v1/energy")
    assert (stranger.key, stranger.status) == (None, 401)
    assert KEY not in str(locked.told)


def test_a_client_that_leaves_is_told_of_too(start_app: StartApp) -> None:
    server = start_app()
    with server.machine.held():
        client = server.begin(TEXT, server.completion())
        until(lambda: server.machine.waits, "the first step", PATIENCE_S)
        client.leave()
    (entry,) = until(lambda: [one for one in server.told if one.path == TEXT], "the entry")
    assert (entry.status, entry.completion_tokens) == (499, None)
