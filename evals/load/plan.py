"""What to send and when: shots of given lengths, and arrivals read from a trace.

Contract: pure functions of their arguments, so that two servers get the same prompts; every shot's
prompt is different, so that no prefix cache helps. A trace is a CSV in the layout of the Azure LLM
inference traces of 2023 (TIMESTAMP, ContextTokens, GeneratedTokens), sorted by time.

Not covered: texts that mean something; conversations that share a prefix.
"""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from greenllm.core import GreenllmError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
FIRST_ID = 8  # the lowest ids are often special tokens
_REMEDY = (
    "a line needs a time, prompt tokens above 0 and generated tokens: correct it or take it out"
)
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


class TraceError(GreenllmError):
    """A trace cannot be used; the message names the line."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One request to send; `at_s` after the start in an open loop."""

    index: int
    prompt_tokens: int
    max_tokens: int
    at_s: float = 0.0


def even_shots(prompt_tokens: int, max_tokens: int, *, first: int = 0) -> Iterator[Shot]:
    """Shots of one length without end, numbered from `first` on."""
    for index in itertools.count(first):
        yield Shot(index, prompt_tokens, max_tokens)


def prompt_ids(seed: int, shot: Shot, vocabulary: int) -> list[int]:
    """Token ids of a shot's prompt, drawn below `vocabulary`."""
    rng = random.Random(f"{seed}-{shot.index}")
    low = FIRST_ID if vocabulary > 2 * FIRST_ID else 0
    return [rng.randrange(low, vocabulary) for _ in range(shot.prompt_tokens)]


def prompt_text(seed: int, shot: Shot) -> str:
    """As many made-up words as the shot has prompt tokens; tokenizers count otherwise."""
    rng = random.Random(f"{seed}-{shot.index}")
    words = ("".join(rng.choices(SYLLABLES, k=2)) for _ in range(shot.prompt_tokens))
    return " ".join(words)


def read_trace(lines: Iterable[str], *, limit: int | None = None) -> list[Shot]:
    """The first `limit` arrivals of a trace, in seconds after the first.

    Raises:
        TraceError: a column is missing, or a line does not hold a time and two numbers.
    """
    reader = csv.DictReader(lines)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise TraceError(f"the trace has no column {', '.join(missing)}")
    rows = list(itertools.islice(reader, limit))
    if not rows:
        raise TraceError("the trace has no arrivals")
    return _from_first([_shot(row, i) for i, row in enumerate(rows)])


def _place(index: int) -> str:
    return f"line {index + 2} of the trace (arrival {index + 1})"


def _shot(row: dict[str, str], index: int) -> Shot:
    try:
        at_s = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
        prompt, generated = int(row["ContextTokens"]), int(row["GeneratedTokens"])
    except (TypeError, ValueError) as error:
        raise TraceError(f"{_place(index)}: {error}; {_REMEDY}") from error
    if prompt < 1 or generated < 0:
        raise TraceError(f"{_place(index)}: lengths {prompt}, {generated}; {_REMEDY}")
    return Shot(index, prompt, max(1, generated), at_s)


def _from_first(shots: Sequence[Shot]) -> list[Shot]:
    start_s = shots[0].at_s
    timed = [Shot(s.index, s.prompt_tokens, s.max_tokens, s.at_s - start_s) for s in shots]
    for before, after in itertools.pairwise(timed):
        if after.at_s < before.at_s:
            raise TraceError(
                f"{_place(after.index)} is earlier than the one before; sort the trace by time"
            )
    return timed


def length_factor(shots: Sequence[Shot], max_context: int | None) -> float:
    """By what all lengths are multiplied so that the longest request fits; never more than 1."""
    longest = max(shot.prompt_tokens + shot.max_tokens for shot in shots)
    return 1.0 if max_context is None else min(1.0, max_context / longest)


def scale_trace(
    shots: Sequence[Shot], *, max_context: int | None = None, rate_scale: float = 1.0
) -> list[Shot]:
    """Shrink all lengths by one factor and send `rate_scale` times as fast.

    Every prompt and answer keeps at least one token.
    """
    factor = length_factor(shots, max_context)
    return [
        Shot(
            shot.index,
            max(1, int(shot.prompt_tokens * factor)),
            max(1, int(shot.max_tokens * factor)),
            shot.at_s / rate_scale,
        )
        for shot in shots
    ]
