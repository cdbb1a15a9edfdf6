"""One simulated machine: prompts one at a time, generation shared by all, joules by what it does.

Contract: `settle` brings the books up to a moment; everything else settles first. A waiting prompt
is read before generation goes on, alone and at the measured speed; then every sequence gets a token
in each step, and a step takes what the curve says for so many. So seconds and joules are those of
the parts that the machine computes, and only their order is simplified (real servers mix chunks of
prompts into steps). Progress is kept as tokens per sequence since the beginning, the same for all
that generate, so that a change costs O(log n) and not a visit to each.

A request's joules are its prompt's and its share of the steps it was in; idle, sleep and start are
the machine's own.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Self

from evals.studies.placement.machine import Machine

ASLEEP, STARTING, IDLE, PROMPT, GENERATION = range(5)
PHASES = ("asleep", "starting", "idle", "prompt", "generation")
_SAME_TOKENS = 1e-6


@dataclass(frozen=True, slots=True)
class Rates:
    """A machine's figures by number of sequences, up to the batch limit."""

    step_s: tuple[float, ...]
    sequence_j: tuple[float, ...]
    prompt_s: float
    prompt_j: float
    idle_w: float
    sleep_w: float
    start_w: float
    start_s: float

    @classmethod
    def of(cls, machine: Machine, limit: int) -> Self:
        """Of batches up to `limit`; larger than measured is refused by the curve."""
        sizes = range(1, limit + 1)
        return cls(
            (math.inf, *(machine.curve.step_s(size) for size in sizes)),
            (0.0, *(machine.curve.step_j(size) / size for size in sizes)),
            machine.prompt.s_per_token,
            machine.prompt.j_per_token,
            machine.idle_w,
            machine.sleep_w,
            machine.start_w,
            machine.start_s,
        )


@dataclass(slots=True)
class Job:
    """A request on its way; joules are known when it has ended."""

    number: int
    at_s: float
    prompt_tokens: int
    tokens: int
    detour_s: float = 0.0
    prompt_done_s: float = math.nan
    joules: float = 0.0


@dataclass(slots=True)
class Node:
    """A machine with `active` requests in hand; `version` tells which planned events are void."""

    number: int
    region: int
    rates: Rates
    phase: int = ASLEEP
    active: int = 0
    version: int = 0
    since_s: float = 0.0
    until_s: float = math.inf
    seconds: list[float] = field(default_factory=lambda: [0.0] * len(PHASES))
    busy_j: float = 0.0
    _tokens: float = 0.0
    _joules: float = 0.0
    _generating: list[tuple[float, int, Job]] = field(default_factory=list)
    _prompts: deque[Job] = field(default_factory=deque)

    def settle(self, now_s: float) -> None:
        """Book the time since the last change."""
        passed_s = now_s - self.since_s
        if passed_s <= 0:
            return
        self.since_s = now_s
        self.seconds[self.phase] += passed_s
        if self.phase == GENERATION:
            count = len(self._generating)
            tokens = passed_s / self.rates.step_s[count]
            each_j = tokens * self.rates.sequence_j[count]
            self._tokens += tokens
            self._joules += each_j
            self.busy_j += count * each_j
        elif self.phase == PROMPT:
            self.busy_j += passed_s * self.rates.prompt_j / self.rates.prompt_s

    def joules(self) -> float:
        """Everything so far."""
        rates, seconds = self.rates, self.seconds
        return (
            self.busy_j
            + seconds[IDLE] * rates.idle_w
            + seconds[ASLEEP] * rates.sleep_w
            + seconds[STARTING] * rates.start_w
        )

    def enter(self, phase: int, now_s: float, until_s: float = math.inf) -> None:
        """Sleep, start or idle, until something is planned."""
        self.settle(now_s)
        self.phase, self.until_s = phase, until_s

    def add(self, job: Job, now_s: float) -> None:
        """Take a request; its prompt is read as soon as those before it are."""
        self.settle(now_s)
        self.active += 1
        self._prompts.append(job)
        if self.phase != PROMPT:
            self._read(now_s)
        self.plan()

    def advance(self, now_s: float) -> list[Job]:
        """The planned end of a prompt or of a generation has come; returns what has ended."""
        self.settle(now_s)
        ended: list[Job] = []
        if self.phase == PROMPT:
            self._begin(self._prompts.popleft(), now_s)
        else:
            self._tokens = max(self._tokens, self._generating[0][0])
            ended = self._finish()
        if self._prompts:
            self._read(now_s)
        else:
            self.phase = GENERATION if self._generating else IDLE
        self.plan()
        return ended

    def plan(self) -> None:
        """When the next thing happens by itself; a machine without work is told from outside."""
        if self.phase == GENERATION:
            left = self._generating[0][0] - self._tokens
            self.until_s = self.since_s + left * self.rates.step_s[len(self._generating)]
        elif self.phase == IDLE:
            self.until_s = math.inf

    def _read(self, now_s: float) -> None:
        self.phase = PROMPT
        self.until_s = now_s + self._prompts[0].prompt_tokens * self.rates.prompt_s

    def _begin(self, job: Job, now_s: float) -> None:
        job.prompt_done_s = now_s
        job.joules = job.prompt_tokens * self.rates.prompt_j - self._joules
        heappush(self._generating, (self._tokens + job.tokens, job.number, job))

    def _finish(self) -> list[Job]:
        ended = []
        while self._generating and self._generating[0][0] <= self._tokens + _SAME_TOKENS:
            ended.append(heappop(self._generating)[2])
            ended[-1].joules += self._joules
            self.active -= 1
        return ended
