"""What vLLM's scheduler has decided, step by step: whose tokens run, from where, and which drafts.

Contract: a scheduler that is followed writes every decision to a journal before the step runs.
Counts are the scheduler's own: chunks of prompts, tokens computed again after a preemption, and
tokens spared by the prefix cache all appear as they are run.

Not covered: vLLM's asynchronous scheduling, whose answers lag its decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One sequence's part of a step: tokens from position `start` on, draft tokens included."""

    sequence_id: str
    start: int
    num_tokens: int
    draft: tuple[int, ...] = ()


@dataclass(slots=True)
class Journal:
    """Decisions that nobody has taken yet."""

    entries: list[Scheduled] = field(default_factory=list)
    num_preemptions: int = 0

    def take(self) -> list[Scheduled]:
        """All since the last call."""
        found, self.entries = self.entries, []
        return found


def own_id(internal: str) -> str:
    """The id that was given to vLLM, without what it has added to it."""
    return internal.rpartition("-")[0]


def follow(scheduler: Any, journal: Journal) -> None:
    """Have one of vLLM's schedulers write every decision to a journal, before the step runs.

    The scheduler itself is changed, not its class: a class would be sent to other processes.
    """
    decide = scheduler.schedule

    def schedule(*args: Any, **options: Any) -> Any:
        """Decide as usual, and write down what."""
        decided = decide(*args, **options)
        drafts = decided.scheduled_spec_decode_tokens
        for internal, count in decided.num_scheduled_tokens.items():
            # The scheduler has counted these tokens as computed already.
            start = scheduler.requests[internal].num_computed_tokens - count
            draft = tuple(drafts.get(internal, ()))
            journal.entries.append(Scheduled(own_id(internal), start, count, draft))
        journal.num_preemptions += len(getattr(decided, "preempted_req_ids", None) or ())
        return decided

    scheduler.schedule = schedule
