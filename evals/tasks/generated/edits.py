"""Copying and changing a text: repeat it, or repeat it with one word replaced.

Contract: every example is exact; a replaced word occurs in the text as a whole word, and each of
its occurrences is replaced. Not covered: edits that need grammar, such as another tense.
"""

from __future__ import annotations

import random
import re
from typing import Final

from evals.tasks.generated.example import Example, ask
from evals.tasks.generated.skills import all_names, any_name, open_name
from evals.tasks.generated.stories import story_names, tell
from evals.tasks.generated.tables import ANIMALS, CITIES, TRAITS, WORDS

COPY_FORMS: Final = (
    "Repeat: {t}", "Repeat after me: {t}", "Copy this: {t}", "Say: {t}", "Copy this text: {t}",
    "Write this again: {t}",
)  # fmt: skip
EDIT_FORMS: Final = (
    "Replace {a} with {b}: {t}", "Change {a} to {b}: {t}", "Write {b} instead of {a}: {t}",
    "Rewrite this text with {b} in place of {a}: {t}", "{t} Replace {a} with {b}.",
    "{t} Change {a} to {b}.",
)  # fmt: skip
REPLACEABLE: Final = frozenset({*WORDS, *ANIMALS, *CITIES, *all_names()})
NOTES: Final = (
    "{n} bought a {w} in {c}.", "There is a {w} on the {v}.", "The {w} of {n} is near the {v}.",
    "Please send the {w} to {n} in {c}.", "{n} and {m} met in {c}.", "We need {k} of the {w}.",
    "{m} lost a {w} on the way to {c}.", "Call {n} at {k} about the {w}.",
)  # fmt: skip


def _note(rng: random.Random) -> str:
    """One plain sentence with names, words, a city or a number."""
    word, other = rng.sample(WORDS, 2)
    names = {"n": open_name(rng), "m": open_name(rng)}
    return rng.choice(NOTES).format(
        w=word, v=other, c=rng.choice(CITIES), k=rng.randint(2, 99), **names
    )


def _story_part(rng: random.Random, name: str) -> str:
    """The first one to five sentences of a story."""
    story = tell(rng, rng.choice(TRAITS)[0], rng.choice(ANIMALS), name, long=False)
    return " ".join(re.split(r"(?<=[.!?]) (?=[A-Z])", story)[: rng.randint(1, 5)])


def _text(rng: random.Random) -> str:
    """Something to copy: words, notes or a piece of a story."""
    kind = rng.random()
    if kind < 0.4:
        return " ".join(rng.choice((*WORDS, open_name(rng))) for _ in range(rng.randint(1, 8)))
    if kind < 0.8:
        return " ".join(_note(rng) for _ in range(rng.randint(1, 3)))
    return _story_part(rng, rng.choice(story_names()))


def copy(rng: random.Random) -> Example:
    """Repeating a text, keyed by the text."""
    text = _text(rng)
    question = rng.choice(COPY_FORMS).format(t=text)
    return ask("copy", question, text, (f"words:{text}",), exact=True)


def replace_word(text: str, old: str, new: str) -> str:
    """The text with every whole-word occurrence of one word replaced."""
    return re.sub(rf"\b{re.escape(old)}\b", new, text)


def edit(rng: random.Random) -> Example:
    """A text with one word or name replaced by another, keyed by the two and a new name."""
    text = _text(rng)
    old = rng.choice([w for w in re.findall(r"[A-Za-z]+", text) if w in REPLACEABLE])
    new = old
    while new == old:
        new = any_name(rng) if old[0].isupper() else rng.choice(WORDS)
    question = rng.choice(EDIT_FORMS).format(a=old, b=new, t=text)
    keys = (f"edit:{old}>{new}", f"name:{new}") if old[0].isupper() else (f"edit:{old}>{new}",)
    return ask("edit", question, replace_word(text, old, new), keys, exact=True)
