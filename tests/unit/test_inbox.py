"""Whoever waits for the engine gets an answer or an error, and nothing stays open behind them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from greenllm.client import EngineClient, Query
from greenllm.core import Batch, GreenllmError, SamplingParams
from greenllm.energy.receipt import Receipt
from greenllm.engine.native import NativeEngine
from greenllm.generation import GenerationError
from greenllm.inbox import EngineStoppedError
from greenllm.model.adapters import AdapterRegistry
from greenllm.model.lora_config import CONFIG_NAME
from greenllm.model.lora_layout import LoraFacts
from tests.fake_engine import make_engine, make_runner
from tests.waiting import PATIENCE_S, until

LONG = SamplingParams(max_tokens=60, ignore_eos=True)
QUERY = Query((1, 2), LONG)


@dataclass
class House:
    """A client over the fake model, which waits for `go` and then does as told; its ledger."""

    go: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    outcomes: set[str] = field(default_factory=set)
    engine: NativeEngine = field(init=False)
    client: EngineClient = field(init=False)

    def on_run(self, _: Batch) -> None:
        self.reached.set()
        assert self.go.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error

    def record(
        self, session_id: str, receipts: Sequence[Receipt], *given: object, **more: object
    ) -> None:
        self.outcomes |= {receipt.outcome for receipt in receipts}

    def in_use(self) -> int:
        return sum(info.in_flight for info in self.engine.adapters.list())


@dataclass(frozen=True)
class Weights:
    digest: str = "digest"
    num_bytes: int = 4


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / CONFIG_NAME).write_text("{}")

    def read(_: Path) -> Any:
        return Weights()

    adapters = AdapterRegistry(read, lambda _: LoraFacts(1, 1, ("q",), ""), home=tmp_path)
    house = House()
    house.engine = make_engine(make_runner(on_run=house.on_run), adapters=adapters)
    house.client = EngineClient(house.engine, "fake", house, "")
    yield house
    house.go.set()
    house.client.close()


def break_down(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine thread itself end with an error."""

    def settle() -> NoReturn:
        raise MemoryError("the engine broke")

    monkeypatch.setattr(house.engine, "settle", settle)
    house.go.set()


def test_a_failing_step_is_its_callers_error_with_a_receipt(house: House) -> None:
    house.error = MemoryError("device is full")
    house.go.set()
    with pytest.raises(GenerationError, match="device is full") as caught:
        house.client.answers(house.client.submit([QUERY]))
    assert caught.value.receipt.outcome == "failed"
    house.error = None
    assert house.client.answers(house.client.submit([QUERY]))[0].receipt.outcome == "completed"


def test_an_engine_that_breaks_reaches_everybody(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[object] = []
    pending = house.client.submit([QUERY, QUERY], ends.append)
    break_down(house, monkeypatch)
    for one in pending:
        with pytest.raises(EngineStoppedError):
            house.client.answers([one])
    until(lambda: ends.count(None) == 2, "the end of both streams")
    with pytest.raises(EngineStoppedError):
        house.client.submit([replace(QUERY, adapter="fox")])
    house.client.close()


def test_closing_answers_who_waits_and_refuses_who_comes(house: House) -> None:
    begun = house.client.submit([QUERY])[0]
    assert house.reached.wait(PATIENCE_S)
    closing = threading.Thread(target=house.client.close)
    closing.start()
    house.go.set()
    closing.join(PATIENCE_S)
    assert begun.receipt.result(0).outcome == "aborted"
    house.client.close()
    with pytest.raises(EngineStoppedError):
        house.client.submit([replace(QUERY, adapter="fox")])
    assert house.in_use() == 0


def test_one_refused_prompt_refuses_all_and_leaves_nothing_open(house: House) -> None:
    too_long = Query((1,) * 70, SamplingParams(max_tokens=1))
    for last, named in ((replace(QUERY, adapter="wolf"), "wolf"), (too_long, "70")):
        with pytest.raises(GreenllmError, match=named):
            house.client.submit([replace(QUERY, adapter="fox"), last])
    assert house.in_use() == 0
    assert not house.engine.has_work


def test_an_interrupt_while_waiting_ends_the_work(house: House) -> None:
    class Interrupted(Future[Receipt]):
        def result(self, timeout: float | None = None) -> NoReturn:
            raise KeyboardInterrupt

    pending = house.client.submit([replace(QUERY, adapter="fox")])[0]
    assert house.reached.wait(PATIENCE_S)
    with pytest.raises(KeyboardInterrupt):
        house.client.answers([replace(pending, receipt=Interrupted())])
    house.go.set()
    assert pending.receipt.result(PATIENCE_S).outcome == "aborted"
    assert house.in_use() == 0


def test_a_cancelled_task_ends_its_work_and_nobody_elses(house: House) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(house.client.answers_in_task([QUERY])) for _ in range(2)]
        await asyncio.to_thread(house.reached.wait, PATIENCE_S)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        house.go.set()
        assert (await tasks[1])[0].receipt.outcome == "completed"

    asyncio.run(main())
    until(lambda: house.outcomes == {"aborted", "completed"}, "both receipts")


def test_a_task_cancelled_while_it_submits_leaves_no_work(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        entered.set()
        assert leave.wait(PATIENCE_S)

    monkeypatch.setattr(house.engine, "check", slow)

    async def main() -> None:
        query = replace(QUERY, adapter="fox")
        task = asyncio.create_task(house.client.submit_in_task([query]))
        await asyncio.to_thread(entered.wait, PATIENCE_S)
        task.cancel()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    house.go.set()
    until(lambda: house.outcomes, "the receipt")
    assert house.outcomes == {"aborted"}
    assert house.in_use() == 0
