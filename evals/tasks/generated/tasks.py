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
from functools import reduce
from typing import Final

from evals.tasks.generated import edits, skills, sql, stories, talk
from evals.tasks.generated.example import Example, Message, is_held_out
from evals.tasks.generated.tables import SYSTEM_PROMPTS

Generator = Callable[[random.Random], Example]

TASKS: Final[tuple[tuple[str, Generator, float], ...]] = (
    ("story", stories.story, 8.0),
    ("addition", skills.addition, 9.0),
    ("subtraction", skills.subtraction, 8.0),
    ("compare", skills.compare, 6.0),
    ("count", skills.count, 6.0),
    ("extraction", skills.extraction, 7.0),
    ("json", skills.as_json, 9.0),
    ("sql", sql.text_to_sql, 10.0),
    ("reading", skills.reading, 9.0),
    ("sentiment", skills.sentiment, 3.0),
    ("topic", skills.topic, 3.0),
    ("copy", edits.copy, 9.0),
    ("edit", edits.edit, 11.0),
    ("reverse", skills.reverse, 7.0),
    ("sort", skills.sort_words, 9.0),
    ("upper", skills.upper, 6.0),
    ("pick", skills.pick_word, 4.0),
    ("about", talk.about, 6.0),
    ("facts", talk.facts, 6.0),
    ("definition", talk.definition, 4.0),
    ("unknown", talk.unknown, 4.0),
    ("list", talk.list_things, 2.0),
    ("memory", talk.memory, 5.0),
)


def task_names() -> tuple[str, ...]:
    """All tasks, in a fixed order."""
    return tuple(name for name, _, _ in TASKS)


def _draw(rng: random.Random) -> Example:
    """One example of a randomly chosen task."""
    generators = [generator for _, generator, _ in TASKS]
    weights = [weight for _, _, weight in TASKS]
    return rng.choices(generators, weights)[0](rng)


def _open_draw(rng: random.Random) -> Example:
    """One example without a held-out key."""
    while is_held_out(example := _draw(rng)):
        pass
    return example


def _with_system(rng: random.Random, example: Example) -> Example:
    """The example after one of the system messages."""
    system = Message("system", rng.choice(SYSTEM_PROMPTS))
    return replace(example, messages=(system, *example.messages))


def _after(first: Example, second: Example) -> Example:
    """The second example as a follow-up turn to the first."""
    return replace(second, messages=first.messages + second.messages, keys=first.keys + second.keys)


def _conversation(rng: random.Random, examples: int) -> Example:
    """Several examples as one conversation, sometimes after a system message."""
    chat = reduce(_after, (_open_draw(rng) for _ in range(examples)))
    return _with_system(rng, chat) if rng.random() < 0.3 else chat


def training_examples(seed: int) -> Iterator[Example]:
    """An endless stream of short conversations that never touches a held-out key."""
    rng = random.Random(f"train-{seed}")
    while True:
        yield _conversation(rng, 2 if rng.random() < 0.15 else 1)


def long_examples(seed: int) -> Iterator[Example]:
    """The same in long conversations, so that the model learns later positions."""
    rng = random.Random(f"long-{seed}")
    while True:
        yield _conversation(rng, rng.randint(3, 16))


def held_out_examples(task: str, size: int, seed: int, exact: bool = True) -> tuple[Example, ...]:
    """Distinct examples of one task, each with a part that training never shows.

    A task without keys (small talk) has none. Those without one right answer are left out where
    `exact` answers are asked for.
    """
    generator = {name: generator for name, generator, _ in TASKS}[task]
    rng = random.Random(f"held-out-{seed}-{task}")
    found: dict[tuple[Message, ...], Example] = {}
    for _ in range(200 * size):
        example = generator(rng)
        if is_held_out(example) and (example.exact or not exact):
            found.setdefault(example.prompt, example)
        if len(found) == size:
            break
    return tuple(found.values())
