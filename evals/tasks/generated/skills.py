"""Tasks with one right answer that follows from the question: numbers, words, names, labels.

Contract: every example is exact, and its keys name the part that must be unseen when held out.
Not covered: numbers above 99, sums of two two-digit numbers, words unlike those in `tables`.
"""

from __future__ import annotations

import json
import random
from itertools import product

from evals.tasks.generated.example import Example, ask, is_held_out_key
from evals.tasks.generated.tables import (
    BAD_WORDS,
    CITIES,
    COLOURS,
    GOOD_WORDS,
    HER_NAMES,
    HIS_NAMES,
    NAME_HEADS,
    NAME_MIDDLES,
    NAME_TAILS,
    REVIEWED,
    THINGS,
    TOPICS,
    WORDS,
)


def any_name(rng: random.Random) -> str:
    """A name, mostly made up from syllables so that the model learns to copy."""
    if rng.random() < 0.3:
        return rng.choice(HER_NAMES + HIS_NAMES)
    return rng.choice(NAME_HEADS) + rng.choice(NAME_MIDDLES) + rng.choice(NAME_TAILS)


def all_names() -> frozenset[str]:
    """Every name that can occur."""
    made_up = map("".join, product(NAME_HEADS, NAME_MIDDLES, NAME_TAILS))
    return frozenset({*HER_NAMES, *HIS_NAMES, *made_up})


def open_name(rng: random.Random) -> str:
    """A name that training may show."""
    name = any_name(rng)
    return open_name(rng) if is_held_out_key(f"name:{name}") else name


def addition(rng: random.Random) -> Example:
    """A number below 100 and one below 10, keyed by the unordered pair."""
    a, b = rng.randrange(100), rng.randrange(10)
    if rng.random() < 0.25:
        a, b = b, a
    question = rng.choice(
        (
            "What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b} = ?",
            "Calculate {a} + {b}.", "How much is {a} plus {b}?", "{a} + {b}", "{a}+{b}",
        )
    )  # fmt: skip
    answer = f"{a} + {b} = {a + b}"
    key = f"add:{min(a, b)}+{max(a, b)}"
    return ask("addition", question.format(a=a, b=b), answer, (key,), exact=True)


def subtraction(rng: random.Random) -> Example:
    """A number below 100 less one below 10, never negative, keyed by the pair."""
    b, a = sorted((rng.randrange(10), rng.randrange(100)))
    question = rng.choice(
        (
            "What is {a} - {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}.",
            "Calculate {a} - {b}.", "How much is {a} minus {b}?", "{a} - {b} = ?", "{a} - {b}",
        )
    )  # fmt: skip
    answer = f"{a} - {b} = {a - b}"
    return ask("subtraction", question.format(a=a, b=b), answer, (f"sub:{a}-{b}",), exact=True)


def compare(rng: random.Random) -> Example:
    """Which of two numbers is bigger, keyed by the unordered pair."""
    a, b = rng.sample(range(100), 2)
    question = rng.choice(("Which is bigger, {a} or {b}?", "Which number is larger: {a} or {b}?"))
    answer = f"{max(a, b)} is bigger than {min(a, b)}."
    key = f"compare:{min(a, b)},{max(a, b)}"
    return ask("compare", question.format(a=a, b=b), answer, (key,), exact=True)


def count(rng: random.Random) -> Example:
    """Counting from one number up to another, keyed by the two ends."""
    start = rng.randrange(90)
    stop = start + rng.randint(2, 9)
    question = rng.choice(("Count from {a} to {b}.", "Please count from {a} to {b}."))
    answer = ", ".join(str(n) for n in range(start, stop + 1))
    return ask("count", question.format(a=start, b=stop), answer, (f"count:{start}-{stop}",), True)


def _sentence(rng: random.Random, name: str, city: str) -> str:
    """A short sentence about a person and a city."""
    return rng.choice(
        (
            "{name} went to {city} on Monday.", "Yesterday {name} came home from {city}.",
            "In {city}, {name} bought a new book.", "My friend {name} lives in {city}.",
            "The teacher asked {name} about {city}.", "{name} is {n} years old and likes {city}.",
            "We met {name} in {city} last summer.", "I wrote a letter to {name} in {city}.",
        )
    ).format(name=name, city=city, n=rng.randint(5, 80))  # fmt: skip


def extraction(rng: random.Random) -> Example:
    """The name or the city in a sentence, keyed by the name."""
    name, city = any_name(rng), rng.choice(CITIES)
    kind, value = rng.choice((("name", name), ("name", name), ("city", city)))
    question = rng.choice(
        (
            "What is the {kind} in: {s}", "Find the {kind}: {s}",
            "Extract the {kind} from this sentence: {s}", "{s} What is the {kind}?",
            "Which {kind} is in this text? {s}",
        )
    ).format(kind=kind, s=_sentence(rng, name, city))  # fmt: skip
    return ask("extraction", question, f"The {kind} is {value}.", (f"name:{name}",), exact=True)


def as_json(rng: random.Random) -> Example:
    """A person as a JSON object, keyed by the name."""
    name, city, age = any_name(rng), rng.choice(CITIES), rng.randint(5, 99)
    text, fields = rng.choice(
        (
            ("{name} is {age} years old.", ("name", "age")),
            ("{name} lives in {city}.", ("name", "city")),
            ("{name} is {age} years old and lives in {city}.", ("name", "age", "city")),
            ("{name}, {age}, {city}", ("name", "age", "city")),
        )
    )
    question = rng.choice(
        (
            "Format as JSON: {s}", "Write this as JSON: {s}", "Turn this into JSON: {s}",
            "Give me a JSON object for this: {s}", "{s} Answer in JSON.",
        )
    ).format(s=text.format(name=name, age=age, city=city))  # fmt: skip
    values: dict[str, str | int] = {"name": name, "age": age, "city": city}
    answer = json.dumps({field: values[field] for field in fields})
    return ask("json", question, answer, (f"name:{name}",), exact=True)


def reading(rng: random.Random) -> Example:
    """Which colour belongs to whom, told in two sentences; keyed by the names."""
    first, second = any_name(rng), any_name(rng)
    while second == first:
        second = any_name(rng)
    thing, other = rng.sample(THINGS, 2)
    colour, odd = rng.sample(COLOURS, 2)
    facts = [f"{first} has a {colour} {thing}.", f"{second} has a {odd} {other}."]
    rng.shuffle(facts)
    question = f"{' '.join(facts)} What colour is the {thing} of {first}?"
    keys = (f"name:{first}", f"name:{second}")
    return ask("reading", question, f"The {thing} of {first} is {colour}.", keys, exact=True)


def sentiment(rng: random.Random) -> Example:
    """Positive or negative, keyed by the pair of adjective and subject."""
    label, words = rng.choice((("positive", GOOD_WORDS), ("negative", BAD_WORDS)))
    word, noun = rng.choice(words), rng.choice(REVIEWED)
    text = rng.choice(
        (
            "The {noun} was {word}.", "I think the {noun} is {word}.", "What a {word} {noun}!",
            "This {noun} is really {word}.", "We had a {word} {noun} yesterday.",
        )
    ).format(noun=noun, word=word)  # fmt: skip
    question = rng.choice(
        (
            "Is this positive or negative? {s}", "What is the sentiment of: {s}",
            "Classify the sentiment: {s}", "Positive or negative: {s}",
        )
    )  # fmt: skip
    return ask("sentiment", question.format(s=text), label, (f"mood:{word} {noun}",), exact=True)


def topic(rng: random.Random) -> Example:
    """One of five topics, keyed by the name in the sentence."""
    label, actions = rng.choice(TOPICS)
    name = any_name(rng)
    text = f"{name} {rng.choice(actions).format(city=rng.choice(CITIES))}."
    question = rng.choice(
        (
            "What is the topic? {s}", "Classify the topic: {s}", "What is this text about? {s}",
            "Is this about sport, food, music, travel or weather? {s}",
        )
    )  # fmt: skip
    return ask("topic", question.format(s=text), label, (f"name:{name}",), exact=True)


def reverse(rng: random.Random) -> Example:
    """A word list backwards, keyed by the list."""
    words = rng.sample(WORDS, rng.randint(2, 4))
    question = rng.choice(
        (
            "Reverse the words: {w}", "Say these words backwards: {w}",
            "Write the words in reverse order: {w}", "Reverse the order: {w}",
        )
    )  # fmt: skip
    text, answer = " ".join(words), " ".join(reversed(words))
    return ask("reverse", question.format(w=text), answer, (f"words:{text}",), exact=True)


def sort_words(rng: random.Random) -> Example:
    """Three or four words in alphabetical order, keyed by the set of words."""
    words = rng.sample(WORDS, rng.randint(3, 4))
    question = rng.choice(
        ("Sort the words: {w}", "Put in alphabetical order: {w}", "Sort alphabetically: {w}")
    )
    answer = ", ".join(sorted(words))
    key = "sort:" + " ".join(sorted(words))
    return ask("sort", question.format(w=", ".join(words)), answer, (key,), exact=True)


def upper(rng: random.Random) -> Example:
    """Words in capital letters, keyed by the list."""
    words = " ".join(rng.sample(WORDS, rng.randint(1, 3)))
    question = rng.choice(
        ("Write in capital letters: {w}", "Make this upper case: {w}", "Shout this: {w}")
    )
    return ask("upper", question.format(w=words), words.upper(), (f"words:{words}",), exact=True)


def pick_word(rng: random.Random) -> Example:
    """The first or the last word of a list, keyed by the list."""
    words = rng.sample(WORDS, rng.randint(2, 5))
    which, value = rng.choice((("first", words[0]), ("last", words[-1])))
    text = " ".join(words)
    question = rng.choice(("What is the {k} word of: {w}", "Give me the {k} word: {w}"))
    answer = f"The {which} word is {value}."
    return ask("pick", question.format(k=which, w=text), answer, (f"words:{text}",), exact=True)
