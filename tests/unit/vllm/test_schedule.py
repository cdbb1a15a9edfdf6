"""The journal says what the scheduler decided, before it is run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from greenllm.vllm.schedule import Journal, Scheduled, follow, own_id


class Decides:
    """A scheduler as vLLM's: it counts tokens as computed when it schedules them."""

    def __init__(self) -> None:
        self.requests = {
            "r-1/0-0a0a0a0a": SimpleNamespace(num_computed_tokens=0),
            "r-2/1-0b0b0b0b": SimpleNamespace(num_computed_tokens=40),
        }

    def schedule(self, *, more: int) -> Any:
        counts = {"r-1/0-0a0a0a0a": 10 + more, "r-2/1-0b0b0b0b": 3}
        for name, count in counts.items():
            self.requests[name].num_computed_tokens += count
        return SimpleNamespace(
            num_scheduled_tokens=counts,
            scheduled_spec_decode_tokens={"r-2/1-0b0b0b0b": [5, 6]},
            preempted_req_ids={"r-9/0-0c0c0c0c"},
        )


def test_decisions_are_written_down_and_passed_on() -> None:
    journal = Journal()
    scheduler = Decides()
    follow(scheduler, journal)
    decided = scheduler.schedule(more=2)
    assert decided.num_scheduled_tokens["r-1/0-0a0a0a0a"] == 12
    assert journal.take() == [Scheduled("r-1/0", 0, 12), Scheduled("r-2/1", 40, 3, (5, 6))]
    assert journal.take() == []
    assert journal.num_preemptions == 1
    scheduler.schedule(more=0)
    assert [one.start for one in journal.take()] == [12, 43]


def test_ids_are_those_that_were_given() -> None:
    assert own_id("chatcmpl-1-2/0-deadbeef") == "chatcmpl-1-2/0"
