"""The engine thread sleeps while idle, writes before it tells, and says when it dies."""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from greenllm.core import Batch, Request, Token
from greenllm.energy.ledger import Ledger
from greenllm.energy.receipt import Receipt
from greenllm.engine import loop as engine_loop
from greenllm.engine.loop import EngineLoop
from greenllm.engine.native import NativeEngine
from tests.fake_engine import alone, make_engine, make_request, make_runner
from tests.unit.energy.rig import make_receipt
from tests.waiting import PATIENCE_S, until


@dataclass
class Gate:
    """Holds the model up until it is opened; open to begin with."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.opened.set()

    def on_run(self, _: Batch) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)


@dataclass
class House:
    """A running loop and everything it tells."""

    engine: NativeEngine
    ledger: Ledger
    gate: Gate
    has_failed: threading.Event = field(default_factory=threading.Event)
    told: queue.Queue[Token | Receipt] = field(default_factory=queue.Queue)
    unwritten: list[Receipt] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    loop: EngineLoop = field(init=False)

    def __post_init__(self) -> None:
        self.loop = EngineLoop(self.engine, self.ledger, "s", self)

    def stamp(self, receipt: Receipt) -> Receipt:
        return receipt

    def failed(self) -> None:
        self.has_failed.set()

    def publish(self, tokens: Sequence[Token], receipts: Sequence[Receipt]) -> None:
        self.threads.add(threading.current_thread().name)
        for token in tokens:
            self.told.put(token)
        for receipt in receipts:
            if self.ledger.receipt(receipt.request_id) != receipt:
                self.unwritten.append(receipt)
            self.told.put(receipt)

    def hear(self) -> tuple[list[Token], Receipt]:
        """Wait for the next receipt; return what came before it, too."""
        tokens: list[Token] = []
        while True:
            item = self.told.get(timeout=PATIENCE_S)
            if isinstance(item, Receipt):
                return tokens, item
            tokens.append(item)


def alive(house: House) -> bool:
    return house.loop.is_alive


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    gate, ledger = Gate(), Ledger(tmp_path / "ledger.sqlite")
    ledger.open_session("s", method="test", measured=True)
    engine = make_engine(make_runner(on_run=gate.on_run))
    house = House(engine, ledger, gate)
    house.loop.start()
    yield house
    gate.opened.set()
    house.loop.stop(PATIENCE_S)
    ledger.close()


def count_calls(monkeypatch: pytest.MonkeyPatch, engine: NativeEngine, name: str) -> list[None]:
    """A list that grows with every call of a method."""
    calls: list[None] = []
    method = getattr(engine, name)

    def counted() -> Any:
        calls.append(None)
        return method()

    monkeypatch.setattr(engine, name, counted)
    return calls


def test_requests_are_answered_and_their_receipts_written_before_they_are_told(
    house: House,
) -> None:
    requests = {name: make_request(name, [number]) for number, name in enumerate("abc", start=1)}
    for request in requests.values():
        house.loop.submit(request)
    tokens: list[Token] = []
    receipts: list[Receipt] = []
    for _ in requests:
        more, receipt = house.hear()
        tokens += more
        receipts.append(receipt)
    for name, request in requests.items():
        assert [token.token_id for token in tokens if token.request_id == name] == alone(request)[
            0
        ][0]
    assert {receipt.request_id for receipt in receipts} == set(requests)
    assert {(receipt.status, receipt.outcome) for receipt in receipts} == {("final", "completed")}
    assert house.unwritten == []
    assert house.threads == {"engine"}
    assert {receipt.request_id for receipt in house.ledger.receipts()} == set(requests)


def test_an_idle_loop_does_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_calls(monkeypatch, house.engine, "step")
    turns = count_calls(monkeypatch, house.engine, "settle")
    house.loop.submit(make_request("a", [1, 2], ignore_eos=True, max_tokens=4))
    house.hear()
    assert len(steps) == 4
    until(lambda: house.engine.settle_in_s() is None, "the last receipt")
    before = len(turns)
    time.sleep(0.15)  # a loop that spins would turn thousands of times
    assert len(turns) == before
    assert len(steps) == 4
    assert alive(house)
    house.loop.submit(make_request("b", [1, 2], max_tokens=1))
    assert house.hear()[1].request_id == "b"
    assert len(steps) == 5


def test_an_idle_loop_wakes_now_and_then_to_read_the_meter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_loop, "IDLE_TICK_S", 0.01)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.open_session("s", method="test", measured=True)
    house = House(make_engine(tick_s=1.0), ledger, Gate())
    steps = count_calls(monkeypatch, house.engine, "step")
    house.loop.start()
    until(lambda: ledger.sessions()[0].totals.idle_j >= 100, "idle joules in the ledger")
    assert not ledger.sessions()[0].closed
    house.loop.stop()
    ledger.close()
    assert steps == []
    assert house.told.empty()


def test_an_abort_takes_effect_between_two_steps(house: House) -> None:
    house.gate.opened.clear()
    house.loop.submit(make_request("a", [1, 2], max_tokens=50, ignore_eos=True))
    assert house.gate.reached.wait(PATIENCE_S)
    house.loop.abort("a")
    house.loop.abort("unknown")
    house.gate.opened.set()
    tokens, receipt = house.hear()
    assert [token.finish_reason for token in tokens] == [None, "abort"]
    assert (receipt.outcome, receipt.completion_tokens) == ("aborted", 1)
    assert house.engine.stats().num_steps == 1


def test_commands_sent_before_the_start_are_carried_out(house: House) -> None:
    early = House(house.engine, house.ledger, house.gate)
    house.loop.stop(PATIENCE_S)
    assert not alive(house)
    assert not alive(early)
    early.loop.submit(make_request("a", [1, 2], max_tokens=2))
    early.loop.start()
    assert alive(early)
    assert early.hear()[1].request_id == "a"
    early.loop.stop(PATIENCE_S)
    assert not alive(early)


def test_refusals_are_recorded_without_the_engine(house: House) -> None:
    house.loop.submit(make_request("a", [1], max_tokens=1))
    _, receipt = house.hear()
    refused = replace(
        receipt, request_id="no", outcome="refused", status="unmetered", active_j=None
    )
    house.loop.record(refused)
    house.loop.stop(PATIENCE_S)
    assert house.ledger.receipt("no") == refused
    assert house.engine.stats().num_steps == 1


def test_stop_closes_the_session_and_the_joules_add_up(house: House) -> None:
    for name in "ab":
        house.loop.submit(make_request(name, [1, 2, 3]))
        house.hear()
    assert not house.ledger.sessions()[0].closed
    house.loop.stop(PATIENCE_S)
    (session,) = house.ledger.sessions()
    assert session.closed
    assert not alive(house)
    assert house.loop.error is None
    assert not house.has_failed.is_set()
    assert session.totals.meter_j > 0
    assert session.totals.residual < 1e-6
    assert house.ledger.session_sum_j("s") == pytest.approx(session.totals.requests_j)
    assert session.totals == house.engine.stats().totals


def test_stop_finishes_the_step_it_interrupts_and_no_more(house: House) -> None:
    house.gate.opened.clear()
    house.loop.submit(make_request("a", [1, 2], max_tokens=1))
    house.loop.submit(make_request("b", [1, 2], max_tokens=60, ignore_eos=True))
    assert house.gate.reached.wait(PATIENCE_S)
    house.loop.stop(timeout_s=0)
    assert alive(house)
    house.gate.opened.set()
    house.loop.stop(PATIENCE_S)
    assert not alive(house)
    assert house.ledger.sessions()[0].closed
    receipt = house.ledger.receipt("a")
    assert receipt is not None
    assert receipt.status == "final"
    assert house.hear()[1] == receipt
    assert house.unwritten == []
    assert house.engine.stats().num_steps <= 3
    cut = house.ledger.receipt("b")
    assert cut is not None
    assert cut.outcome == "aborted"
    assert house.ledger.sessions()[0].totals.open_j == pytest.approx(0)


@pytest.mark.parametrize("error", [RuntimeError("lost the device"), SystemExit(3)])
def test_a_crash_is_kept_and_reported(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    def crash() -> list[Token]:
        raise error

    monkeypatch.setattr(house.engine, "step", crash)
    assert alive(house)
    house.loop.submit(make_request("a", [1]))
    assert house.has_failed.wait(PATIENCE_S)
    assert house.loop.error is error
    assert not alive(house)
    assert "the engine stopped" in caplog.text
    lost = house.ledger.receipt("a")
    assert lost is not None, "also a dying engine leaves a row for every request"
    assert lost.outcome == "failed"
    house.loop.stop(PATIENCE_S)
    assert not house.ledger.sessions()[0].closed


def test_what_waits_for_an_engine_that_dies_or_comes_later_has_rows(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_die = threading.Event(), threading.Event()

    def crash() -> list[Token]:
        begun.set()
        assert may_die.wait(PATIENCE_S)
        raise SystemExit("the device is gone")

    monkeypatch.setattr(house.engine, "step", crash)
    house.loop.submit(make_request("taken", [1]))
    assert begun.wait(PATIENCE_S)
    house.loop.submit(make_request("waiting", [1]))
    house.loop.record(make_receipt("refused", outcome="refused"))
    may_die.set()
    assert house.has_failed.wait(PATIENCE_S)
    house.loop.record(make_receipt("late", outcome="refused"))
    house.loop.stop(PATIENCE_S)
    outcomes = {row.request_id: row.outcome for row in house.ledger.receipts()}
    assert outcomes == {
        **{"taken": "failed", "waiting": "failed"},
        **{"refused": "refused", "late": "refused"},
    }


def test_a_failing_runner_does_not_stop_the_loop(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(batch: Batch) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(house.engine.runner, "run", refuse)
        house.loop.submit(make_request("bad", [1]))
        tokens, receipt = house.hear()
    assert [token.finish_reason for token in tokens] == ["error"]
    assert receipt.outcome == "failed"
    house.loop.submit(make_request("good", [1]))
    assert house.hear()[1].outcome == "completed"
    assert alive(house)


class AlwaysDue:
    """An engine without work, whose receipts are due in less time than it takes to wait."""

    has_work = False

    def __init__(self) -> None:
        self.turns = 0

    def settle_in_s(self) -> float:
        return 1e-6

    def settle(self) -> list[Receipt]:
        self.turns += 1
        return []

    def add_request(self, request: Request) -> list[Token]:
        return []


def test_a_wait_that_is_over_before_it_begins_ends() -> None:
    engine = AlwaysDue()
    loop = EngineLoop(engine, None, "s", None)  # type: ignore[arg-type]
    request = make_request("a", [1])

    def turn() -> None:
        for _ in range(6_000):
            loop.submit(request)
            loop._turn()
            loop._turn()

    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), f"stuck after {engine.turns} turns"


def totals_recorded(house: House, record_every_s: float) -> int:
    """How often a fresh loop writes totals, during twenty steps without a receipt."""
    calls = 0

    class Counting:
        def record(self, *given: object, **options: object) -> None:
            nonlocal calls
            calls += 1

    loop = EngineLoop(house.engine, Counting(), "s", house, record_every_s=record_every_s)
    for _ in range(20):
        loop._turn()
    return calls


@pytest.mark.parametrize(("every_s", "most", "least"), [(0.0, 20, 20), (math.inf, 0, 0)])
def test_totals_are_recorded_between_receipts_as_often_as_was_asked(
    house: House, every_s: float, most: int, least: int
) -> None:
    house.loop.stop(PATIENCE_S)
    house.engine.add_request(make_request("a", [1], ignore_eos=True, max_tokens=40))
    assert least <= totals_recorded(house, every_s) <= most


def test_what_would_be_lost_is_noted_while_there_is_work(house: House) -> None:
    house.loop.stop(PATIENCE_S)
    noted: list[list[str]] = []

    class Listening:
        def record(
            self, *given: object, if_lost: Sequence[Receipt] | None = None, **options: object
        ) -> None:
            if if_lost is not None:
                noted.append([receipt.request_id for receipt in if_lost])
                assert {receipt.outcome for receipt in if_lost} <= {"lost"}

    loop = EngineLoop(house.engine, Listening(), "s", house, record_every_s=0.0)
    loop.submit(make_request("a", [1], ignore_eos=True, max_tokens=4))
    loop._turn()
    while house.engine.has_work:
        loop._turn()
    assert noted[0] == ["a"], "with the first step"
    assert set(map(tuple, noted)) == {("a",)}
    assert len(noted) == 3, "and no more once it is over"


def test_what_was_noted_of_a_request_that_is_given_up_is_forgotten_at_once(house: House) -> None:
    """Its client was told a provisional receipt: a killed server must not leave a final one."""
    house.loop.stop(PATIENCE_S)
    notes: list[object] = []

    class Listening:
        def record(
            self, *given: object, if_lost: Sequence[Receipt] | None = None, **options: object
        ) -> None:
            notes.append(if_lost)

    loop = EngineLoop(house.engine, Listening(), "s", house, record_every_s=math.inf)
    house.engine.settle = lambda: [make_receipt(status="provisional")]  # type: ignore[method-assign]
    loop.submit(make_request("a", [1], ignore_eos=True, max_tokens=1))
    loop._turn()
    assert notes[-1] is not None


def test_totals_are_recorded_at_the_start(house: House) -> None:
    house.loop.stop(PATIENCE_S)
    recorded = threading.Event()

    class Telling:
        def record(self, *given: object, **options: object) -> None:
            recorded.set()

    loop = EngineLoop(house.engine, Telling(), "s", house, record_every_s=60.0)
    loop.start()
    assert recorded.wait(PATIENCE_S), "an idle loop would wait for half a minute"
    loop.stop(PATIENCE_S)


def test_totals_wait_for_their_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.loop.stop(PATIENCE_S)
    house.engine.add_request(make_request("a", [1], ignore_eos=True, max_tokens=40))
    ticks = itertools.count(100.0, 0.125)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: next(ticks))
        assert 4 <= totals_recorded(house, 0.5) <= 8, "not in each of twenty turns"


def test_a_turn_has_a_number_while_it_lasts(house: House) -> None:
    until(lambda: house.loop.turn is None, "an idle engine")
    house.gate.opened.clear()
    house.loop.submit(make_request("a", [1], ignore_eos=True, max_tokens=2))
    assert house.gate.reached.wait(PATIENCE_S)
    assert house.loop.turn == house.loop.turn is not None
    house.gate.opened.set()
    until(lambda: house.loop.turn is None, "an idle engine again")


def test_an_engine_that_is_given_up_is_told_and_not_waited_for(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.gate.opened.clear()
    house.loop.submit(make_request("a", [1]))
    assert house.gate.reached.wait(PATIENCE_S)
    house.loop.give_up("a step has not ended for 3 s")
    assert house.has_failed.is_set()
    assert not house.loop.is_alive
    assert "on_run" in caplog.text, "where it hangs"
    house.loop.stop()
