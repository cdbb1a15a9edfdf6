"""What the simulated server is asked: bursts, requests by themselves, quiet, and clients that go.

Contract: the same seed gives the same requests at the same moments. Prompts and answers are short,
medium or long, independently. Some requests share the beginning of their prompt, name an adapter,
ask for draft tokens, or leave before their answer is complete.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from greenllm.core import AdapterRef, Request, SamplingParams, Speculation

Length = Literal["short", "medium", "long"]
SHORT_TOKENS = 4
_ANSWERS: dict[Length, tuple[int, int]] = {
    "short": (1, SHORT_TOKENS),
    "medium": (16, 48),
    "long": (96, 200),
}
_PROMPTS = ((4, 16), (48, 160), (300, 600))
_LENGTHS: tuple[Length, ...] = ("short", "medium", "long")
_LENGTH_WEIGHTS = (0.4, 0.4, 0.2)
_PROMPT_WEIGHTS = (0.3, 0.5, 0.2)
# A round of the load, again and again: (seconds, requests per second).
_QUIET = (3.0, 0.0)
_BUSY = (8.0, 3.0)
_CROWDED = (5.0, 10.0)
_LONE = (14.0, 0.4)
_ROUND = (_QUIET, _BUSY, _QUIET, _CROWDED, _QUIET, _QUIET, _LONE)
_SYSTEM_TOKENS = 64
_VOCABULARY = 1000


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, when it comes, and when its client leaves."""

    at_s: float
    request: Request
    length: Length
    leaves_s: float | None = None


def arrivals(seed: int, seconds: float) -> list[Arrival]:
    """The requests of so many seconds; the first ones come after a while of quiet."""
    source = random.Random(seed)
    systems = [_tokens(source, _SYSTEM_TOKENS) for _ in range(2)]
    moments = enumerate(_moments(source, seconds))
    return [_arrival(source, f"{seed}-{number}", at_s, systems) for number, at_s in moments]


def _moments(source: random.Random, seconds: float) -> Iterator[float]:
    """Poisson arrivals at a rate that changes."""
    at_s = 0.0
    while at_s < seconds:
        for lasts_s, per_s in _ROUND:
            moment_s, end_s = at_s, min(seconds, at_s + lasts_s)
            while per_s and (moment_s := moment_s + source.expovariate(per_s)) < end_s:
                yield moment_s
            at_s += lasts_s


def _arrival(
    source: random.Random, name: str, at_s: float, systems: Sequence[tuple[int, ...]]
) -> Arrival:
    (length,) = source.choices(_LENGTHS, _LENGTH_WEIGHTS)
    ((low, high),) = source.choices(_PROMPTS, _PROMPT_WEIGHTS)
    prompt = _tokens(source, source.randint(low, high))
    if source.random() < 0.3:
        prompt = source.choice(systems) + prompt
    adapter = AdapterRef("a", "a", 4_000_000) if source.random() < 0.15 else None
    speculates = source.random() < 0.2
    params = SamplingParams(
        temperature=0.0, seed=source.randrange(2**31), max_tokens=source.randint(*_ANSWERS[length])
    )
    leaves_s = at_s + source.uniform(0.05, 1.5) if source.random() < 0.15 else None
    request = Request(
        request_id=name,
        prompts=(prompt,),
        work=params,
        model="simulated",
        adapter=adapter,
        created_s=at_s,
        speculation=Speculation("draft_model", 4) if speculates else None,
    )
    return Arrival(at_s, request, length, leaves_s)


def _tokens(source: random.Random, count: int) -> tuple[int, ...]:
    return tuple(source.randrange(_VOCABULARY) for _ in range(count))
