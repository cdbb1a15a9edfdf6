"""A server whose engine has died or hangs is given up, and one without memory says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from greenllm.engine.loop import EngineLoop
from serving.supervisor import Supervisor

MB = 1_000_000


@dataclass
class Engine:
    """What the supervisor sees of an engine's thread."""

    turn: int | None = None
    error: BaseException | None = None
    given_up: list[str] = field(default_factory=list)

    def give_up(self, reason: str) -> None:
        self.given_up.append(reason)
        self.error = RuntimeError(reason)


@dataclass
class House:
    engine: Engine = field(default_factory=Engine)
    free: int | None = 1000 * MB
    failures: list[str] = field(default_factory=list)

    def supervisor(self, **options: float) -> Supervisor:
        values = {"step_timeout_s": 3.0, "min_free_bytes": 100.0 * MB, **options}
        engine = cast(EngineLoop, self.engine)
        return Supervisor(engine, self.failures.append, free=lambda: self.free, **values)


def test_an_engine_that_has_died_is_told_once() -> None:
    house = House()
    supervisor = house.supervisor()
    assert supervisor.look()
    house.engine.error = SystemExit("the device is gone")
    assert not supervisor.look()
    assert house.failures == ["the device is gone"]


def test_an_error_without_words_has_its_name() -> None:
    house = House(Engine(error=MemoryError()))
    house.supervisor().look()
    assert house.failures == ["MemoryError"]


def test_a_turn_that_does_not_end_is_given_up() -> None:
    house = House()
    supervisor = house.supervisor()
    house.engine.turn = 7
    assert [supervisor.look() for _ in range(4)] == [True, True, True, False]
    assert house.engine.given_up == house.failures == ["a step has not ended for 3 s"]


@pytest.mark.parametrize("turns", [[1, 2, 3, 4, 5, 6], [7, 7, None, 7, 7, None], [None] * 6])
def test_turns_that_end_and_an_idle_engine_are_left_alone(turns: list[int | None]) -> None:
    house = House()
    supervisor = house.supervisor()
    for turn in turns:
        house.engine.turn = turn
        assert supervisor.look()
    assert house.failures == []


def test_without_a_limit_a_step_may_take_for_ever() -> None:
    house = House(Engine(turn=1))
    supervisor = house.supervisor(step_timeout_s=0.0)
    assert all(supervisor.look() for _ in range(1000))


def test_memory_is_short_until_it_is_free_again(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    supervisor = house.supervisor()
    found = []
    for free_mb in (1000, 99, 50, 100):
        house.free = free_mb * MB
        supervisor.look()
        found.append(supervisor.is_short_of_memory)
    assert found == [False, True, True, False]
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "99 MB of memory are free: new requests are refused",
        "100 MB of memory are free: requests are taken again",
    ]


@pytest.mark.parametrize(("free", "least"), [(None, 100.0 * MB), (0, 0.0)])
def test_memory_that_nobody_tells_or_asks_about_is_not_short(
    free: int | None, least: float
) -> None:
    supervisor = House(free=free).supervisor(min_free_bytes=least)
    supervisor.look()
    assert not supervisor.is_short_of_memory
