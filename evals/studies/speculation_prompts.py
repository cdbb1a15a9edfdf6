"""Questions for the speculation benchmark: three kinds of work for models that chat, one more.

Stories have nothing to copy; edits repeat most of the prompt, three short notes or the beginning of
a tale; extraction takes a few words of it, as JSON. Models without a chat template continue the
beginning of a story. Questions are a function of kind, number and seed.
"""

from __future__ import annotations

import random

_STORIES = (
    "Tell me a story about a {} {}.",
    "Write a long story about a {} {}.",
    "I would like to read a story about a {} {}.",
)
_BEGINNING = "Once upon a time, there was a {} {}."
_TRAITS = ("brave", "kind", "shy", "curious", "lazy", "clever")
_ANIMALS = ("fox", "owl", "bear", "mouse", "rabbit", "turtle", "cat", "wolf")
_EDITS = (
    "Replace {a} with {b}: {t}",
    "Change {a} to {b}: {t}",
    "Write {b} instead of {a}: {t}",
    "Repeat: {t}",
    "Copy this text: {t}",
)
_NOTES = (
    "Mira bought a {a} in Oslo.",
    "There is a {a} on the table.",
    "Please send the {a} to Mira in Rome.",
    "We need 12 of the {a}.",
    "Tom lost a {a} on the way to Lima.",
    "Call Mira at 14 about the {a}.",
)
_TALES = (
    "Once upon a time, a brave fox named Mira lived in a quiet forest. One day, Mira found a {a}"
    " under a stone. Then she saw a turtle who had nothing to eat. Mira shared the food, and they"
    " both went to bed full and happy.",
    "There once was a shy owl called Rudi, who had a home near the {a}. One sunny day, Rudi saw a"
    " strange light between the trees. He took a deep breath and walked closer. Behind a bush sat a"
    " squirrel who was looking for a lantern.",
)
_SHARE_OF_TALES = 0.5
_THINGS = ("lamp", "boat", "apple", "river", "stone", "chair", "book", "bell")
_EXTRACTIONS = ("Format as JSON: {t}", "Write this as JSON: {t}", "Turn this into JSON: {t}")
_NAMES = ("Keloric", "Wilanra", "Danarvin", "Orilin", "Isala", "Elonlin", "Baranla", "Pelilmo")
_CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Berlin", "Madrid", "Lisbon", "Tokyo")


def prompts(kind: str, count: int, seed: int) -> list[str]:
    """Questions of one kind, different for each seed."""
    source = random.Random(f"{kind}-{seed}")
    make = {
        "edits": _edit,
        "extraction": _extraction,
        "stories": _story,
        "continuing": _beginning,
    }[kind]
    return [make(source) for _ in range(count)]


def _beginning(source: random.Random) -> str:
    return _BEGINNING.format(source.choice(_TRAITS), source.choice(_ANIMALS))


def _story(source: random.Random) -> str:
    return source.choice(_STORIES).format(source.choice(_TRAITS), source.choice(_ANIMALS))


def _extraction(source: random.Random) -> str:
    name, city = source.choice(_NAMES), source.choice(_CITIES)
    text = f"{name} is {source.randint(11, 98)} years old and lives in {city}."
    return source.choice(_EXTRACTIONS).format(t=text)


def _edit(source: random.Random) -> str:
    old, new = source.sample(_THINGS, 2)
    text = " ".join(source.sample(_NOTES, 3))
    if source.random() < _SHARE_OF_TALES:
        text = source.choice(_TALES)
    text = text.format(a=old)
    return source.choice(_EDITS).format(a=old, b=new, t=text)
