"""The mix of chat examples the bundled model is trained and scored on.

Contract: everything is a pure function of a seed; `training_examples` never yields an example
with a held-out key and `held_out_examples` yields only such. Not covered: world knowledge
beyond the small tables, arithmetic beyond a two-digit and a one-digit number, and any language
but simple English.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from finetune.bundled import skills, stories, talk
from finetune.bundled.example import Example, Message, is_held_out
from finetune.bundled.tables import SYSTEM_PROMPTS

Generator = Callable[[random.Random], Example]

TASKS: Final[tuple[tuple[str, Generator, float], ...]] = (
    ("story", stories.story, 10.0),
    ("addition", skills.addition, 18.0),
    ("subtraction", skills.subtraction, 14.0),
    ("compare", skills.compare, 3.0),
    ("count", skills.count, 2.0),
    ("extraction", skills.extraction, 6.0),
    ("json", skills.as_json, 6.0),
    ("reading", skills.reading, 4.0),
    ("sentiment", skills.sentiment, 3.0),
    ("topic", skills.topic, 3.0),
    ("copy", skills.copy, 5.0),
    ("reverse", skills.reverse, 6.0),
    ("sort", skills.sort_words, 6.0),
    ("upper", skills.upper, 4.0),
    ("pick", skills.pick_word, 3.0),
    ("about", talk.about, 6.0),
    ("facts", talk.facts, 8.0),
    ("definition", talk.definition, 4.0),
    ("unknown", talk.unknown, 3.0),
    ("list", talk.list_things, 2.0),
    ("memory", talk.memory, 4.0),
)


def task_names() -> tuple[str, ...]:
    """All tasks, in a fixed order."""
    return tuple(name for name, _, _ in TASKS)


def _draw(rng: random.Random) -> Example:
    """One example of a randomly chosen task."""
    generators = [generator for _, generator, _ in TASKS]
    weights = [weight for _, _, weight in TASKS]
    return rng.choices(generators, weights)[0](rng)


def _with_system(rng: random.Random, example: Example) -> Example:
    """The example after one of the system messages."""
    system = Message("system", rng.choice(SYSTEM_PROMPTS))
    return replace(example, messages=(system, *example.messages))


def _after(first: Example, second: Example) -> Example:
    """The second example as a follow-up turn to the first."""
    return replace(second, messages=first.messages + second.messages, keys=first.keys + second.keys)


def _dress(rng: random.Random, example: Example) -> Example:
    """Sometimes an earlier turn, sometimes a system message."""
    if rng.random() < 0.15:
        example = _after(_draw(rng), example)
    return _with_system(rng, example) if rng.random() < 0.3 else example


def training_examples(seed: int) -> Iterator[Example]:
    """An endless stream of examples that never touches a held-out key."""
    rng = random.Random(f"train-{seed}")
    while True:
        example = _dress(rng, _draw(rng))
        if not is_held_out(example):
            yield example


def held_out_examples(task: str, size: int, seed: int) -> tuple[Example, ...]:
    """Distinct exact examples of one task, each with a part that training never shows.

    A task without keys (small talk) or without one right answer has none.
    """
    generator = {name: generator for name, generator, _ in TASKS}[task]
    rng = random.Random(f"held-out-{seed}-{task}")
    found: dict[tuple[Message, ...], Example] = {}
    for _ in range(200 * size):
        example = generator(rng)
        if example.exact and is_held_out(example):
            found.setdefault(example.prompt, example)
        if len(found) == size:
            break
    return tuple(found.values())
