"""Wrong keys are slowed down by address, within bounds; nobody who has a right one waits."""

from __future__ import annotations

import asyncio

from serving.keys import attempts
from serving.keys.attempts import FREE_TRIES, LONGEST_WAIT_S, Attempts


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_waits_double_up_to_a_bound_and_are_forgiven() -> None:
    clock = Clock()
    found = Attempts(clock)
    waits = [found.wait_s("10.0.0.1") for _ in range(FREE_TRIES + 100)]
    assert waits[: FREE_TRIES + 2] == [0.0] * FREE_TRIES + [0.1, 0.2]
    assert max(waits) == waits[-1] == LONGEST_WAIT_S
    assert found.wait_s("10.0.0.2") == 0.0
    clock.now_s += 61
    assert found.wait_s("10.0.0.1") == 0.0


def test_a_network_of_version_6_is_one_address() -> None:
    found = Attempts(Clock())
    for number in range(FREE_TRIES):
        assert found.wait_s(f"2001:db8::{number:x}") == 0.0
    assert found.wait_s("2001:db8::ffff") > 0
    assert found.wait_s("2001:db8:0:1::1") == 0.0
    assert found.wait_s("::ffff:10.0.0.1") == found.wait_s("::ffff:10.0.0.2") == 0.0
    assert found.wait_s(None) == found.wait_s("a socket") == 0.0


def test_only_the_latest_addresses_are_kept() -> None:
    found = Attempts(Clock())
    for number in range(attempts.MOST_ADDRESSES + 50):
        found.wait_s(f"10.0.{number // 256}.{number % 256}")
    assert found.num_addresses == attempts.MOST_ADDRESSES


def test_a_bounded_number_of_answers_waits() -> None:
    slept: list[float] = []
    gate = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await gate.wait()

    async def attack() -> None:
        found = Attempts(Clock(), sleep)
        for _ in range(FREE_TRIES):
            await found.slow_down("10.0.0.1")
        assert slept == []
        tries = [asyncio.create_task(found.slow_down("10.0.0.1")) for _ in range(300)]
        while sum(one.done() for one in tries) < 300 - attempts.MOST_WAITING:
            await asyncio.sleep(0)
        assert len(slept) == attempts.MOST_WAITING
        gate.set()
        await asyncio.gather(*tries)
        await found.slow_down("10.0.0.1")
        assert len(slept) == attempts.MOST_WAITING + 1, "places are given back"

    asyncio.run(attack())
