"""Keys as an operator has them: made by a command, taken away while the server runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_key_is_made_used_and_taken_away(
    greenllm: Callable[..., Any], start_server: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    made = greenllm("keys", "create", "ada", "--keys-file", str(path))
    server = start_server("--keys-file", str(path))
    with server:

        def ask(token: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}"}
            answer: httpx.Response = server.http.get("/v1/models", headers=headers)
            return answer

        token = made.stdout.strip()
        assert ask(token).status_code == 200
        assert ask(token[:-1]).status_code == 401
        fresh = greenllm("keys", "rotate", "ada", "--keys-file", str(path)).stdout.strip()
        until(lambda: ask(fresh).status_code == 200, "the new key")
        assert ask(token).status_code == 401
        path.write_text("{")
        until(lambda: ask("any") and "garbled" in server.log.read_text(), "the log to say so")
        assert ask(fresh).status_code == 200
        others = [
            found
            for found in server.data_dir.rglob("*")
            if found != server.log and found.stat().st_mode & 0o077
        ]
        assert others == [], "what the server makes is for its user alone"
    assert json.dumps(token) not in path.read_text()
