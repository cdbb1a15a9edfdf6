"""However a request ends, the engine gives its adapter back, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from greenllm.core import Batch
from greenllm.engine.native import NativeEngine
from greenllm.model.adapters import AdapterRegistry, UnknownAdapterError
from greenllm.model.lora_config import CONFIG_NAME, AdapterError
from greenllm.model.lora_layout import LoraFacts
from tests.fake_engine import make_engine, make_request, make_runner


@dataclass(frozen=True)
class Weights:
    digest: str
    num_bytes: int = 4


def read(folder: Path) -> Any:
    return Weights(f"digest of {folder.name}")


def inspect(_: Path) -> LoraFacts:
    return LoraFacts(1, 1, ("q_proj",), "")


def fail(_: Batch) -> None:
    raise MemoryError("device is full")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("fox", "owl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG_NAME).write_text("{}")
    return tmp_path


@pytest.fixture
def make(home: Path) -> Callable[..., NativeEngine]:
    def make(on_run: Callable[[Batch], None] | None = None) -> NativeEngine:
        registry = AdapterRegistry(read, inspect, home=home)
        return make_engine(make_runner(on_run=on_run), adapters=registry)

    return make


def in_flight(engine: NativeEngine) -> dict[str, int]:
    return {info.name: info.in_flight for info in engine.adapters.list()}


def submit(engine: NativeEngine, request_id: str, adapter: str) -> None:
    request = make_request(request_id, [1, 2, 3], [3, 2, 1], ignore_eos=True)
    engine.add_request(replace(request, adapter=engine.adapters.acquire(adapter)))


@pytest.mark.parametrize("end", ["completed", "aborted", "failed", "drained", "never ran"])
def test_references_come_back(make: Callable[..., NativeEngine], end: str) -> None:
    engine = make(fail if end == "failed" else None)
    submit(engine, "a", "fox")
    submit(engine, "b", "fox")
    submit(engine, "c", "owl")
    assert in_flight(engine) == {"fox": 2, "owl": 1}
    assert engine.adapters.find("fox").in_flight == 2
    if end != "never ran":
        engine.step()
    if end == "aborted":
        for name in "aabbcc":
            engine.abort(name)
    while end == "completed" and engine.has_work:
        engine.step()
    engine.drain()
    assert in_flight(engine) == {"fox": 0, "owl": 0}


def test_the_runner_is_told_where_weights_are(make: Callable[..., NativeEngine]) -> None:
    engine = make()
    submit(engine, "a", "fox")
    source = engine.runner.source  # type: ignore[attr-defined]
    assert source.weights("digest of fox") == Weights("digest of fox")


def test_unloading_is_for_new_requests(make: Callable[..., NativeEngine]) -> None:
    engine = make()
    submit(engine, "a", "fox")
    engine.adapters.remove("fox")
    with pytest.raises(UnknownAdapterError):
        engine.adapters.acquire("fox")
    tokens = [token for _ in range(20) if engine.has_work for token in engine.step()]
    assert [token.finish_reason for token in tokens if token.finish_reason] == ["length"] * 2
    assert engine.adapters.add("bird", engine.adapters.list()[0].folder).name == "bird"


def test_without_a_registry_there_are_no_adapters(tmp_path: Path) -> None:
    engine = make_engine()
    assert engine.adapters.list() == ()
    with pytest.raises(UnknownAdapterError, match="fox"):
        engine.adapters.acquire("fox")
    with pytest.raises(AdapterError, match="adapter"):
        engine.adapters.add("fox", tmp_path)


def test_the_runner_prepares_before_a_request_is_taken(
    make: Callable[..., NativeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    ref = engine.adapters.acquire("fox")
    assert engine.runner.prepared == [ref.digest]  # type: ignore[attr-defined]
    engine.adapters.release(ref)

    def broken(digest: str) -> None:
        raise RuntimeError("no memory for another graph")

    monkeypatch.setattr(engine.runner, "prepare_adapter", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        engine.adapters.acquire("owl")
    assert in_flight(engine) == {"fox": 0, "owl": 0}
