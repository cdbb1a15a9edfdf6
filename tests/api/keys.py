"""Servers that want keys, and the keys to ask them with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI

from serving.keys.caller import Scope
from serving.keys.limits import Limits
from serving.keys.store import Key, change_keys, hash_of

if TYPE_CHECKING:
    from tests.api.asgi import Exchange
    from tests.api.conftest import App

WORK: frozenset[Scope] = frozenset({"inference", "finetune"})


def token(name: str) -> str:
    return f"glk-{name}"


def make_key(name: str, scopes: frozenset[Scope] = WORK, **fields: Any) -> Key:
    return Key(name=name, sha256=hash_of(token(name).encode()), scopes=scopes, **fields)


def write_keys(path: Path, *keys: Key) -> Path:
    """A keys file."""
    change_keys(path, lambda _: keys)
    return path


def limited(name: str, **limits: Any) -> Key:
    return make_key(name, limits=Limits(**limits))


class As:
    """The app's client with somebody's key."""

    def __init__(self, app: App, name: str) -> None:
        self._app = app
        self._headers = {"Authorization": f"Bearer {token(name)}"}

    def get(self, path: str, **given: Any) -> httpx.Response:
        return self.ask("GET", path, **given)

    def post(self, path: str, **given: Any) -> httpx.Response:
        return self.ask("POST", path, **given)

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        return self._app.http.request(method, path, headers=self._headers, **given)

    def complete(self, prompt: Any = "Once", **more: Any) -> httpx.Response:
        body = self._app.completion(prompt, **{"max_tokens": 1, **more})
        return self.post("/v1/completions", json=body)

    def begin(self, **more: Any) -> Exchange:
        """A completion, to wait for later."""
        return self._app.begin("/v1/completions", self._app.completion(**more), self._headers)

    def receipt(self, prompt: Any = "Once", **more: Any) -> dict[str, Any]:
        """Of a completion."""
        answer_id = self.complete(prompt, **more).raise_for_status().json()["id"]
        found: dict[str, Any] = self.get(f"/v1/energy/{answer_id}").raise_for_status().json()
        return found

    def upload(self, content: bytes = b'{"text": "mine"}') -> str:
        """Id of a new file."""
        answer = self.put(content).raise_for_status()
        return str(answer.json()["id"])

    def put(self, content: bytes) -> httpx.Response:
        form: dict[str, Any] = {"files": {"file": ("a.jsonl", content)}}
        return self.post("/v1/files", data={"purpose": "fine-tune"}, **form)

    def train(self, file_id: str, **recipe: Any) -> httpx.Response:
        body = {"model": "bundled", "training_file": file_id, "recipe": {"steps": 2, **recipe}}
        return self.post("/v1/fine_tuning/jobs", json=body)

    def load(self, name: str, folder: Path) -> httpx.Response:
        body = {"lora_name": name, "lora_path": str(folder)}
        return self.post("/v1/load_lora_adapter", json=body)

    def unload(self, name: str) -> httpx.Response:
        return self.post("/v1/unload_lora_adapter", json={"lora_name": name})

    def ids(self, path: str) -> set[str]:
        """Of a list."""
        return {item["id"] for item in self.get(path).raise_for_status().json()["data"]}


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every route of an app, also those that the reference does not show: method and path."""
    for one in app.routes:
        inner: Sequence[Any] = getattr(one, "original_router", app).routes
        for route in [one] if not hasattr(one, "original_router") else inner:
            found: Any = route
            for method in (found.methods or set()) - {"HEAD"}:
                yield method, found.path
