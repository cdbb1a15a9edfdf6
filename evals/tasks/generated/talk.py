"""Small talk, what the model says about itself, small facts, and what it does not know.

Contract: a fact is keyed by its subject together with its phrasing, so a held-out question is
a known fact asked in a way it was never asked before. Not covered: facts outside `tables`.
"""

from __future__ import annotations

import random
from typing import Final

from evals.tasks.generated.example import Example, Message, ask
from evals.tasks.generated.skills import any_name
from evals.tasks.generated.tables import (
    ANIMALS,
    CAPITALS,
    COLOUR_OF,
    COLOURS,
    DAYS,
    DEFINITIONS,
    OPPOSITES,
    SOUND_OF,
    WORDS,
)

ABOUT: Final = (
    (("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.",
      "Who am I talking to?"),
     "I am greenllm's bundled model, a very small language model."),
    (("Who made you?", "Who built you?", "Where do you come from?"),
     "I was trained by the greenllm project, mostly on text that it generated itself."),
    (("What can you do?", "What can you help me with?", "Help", "How can you help me?"),
     "I can tell short stories, write JSON and SQL, edit a text, find names, sort words, add and "
     "subtract small numbers and answer simple questions."),
    (("How big are you?", "How many parameters do you have?", "Are you a large model?"),
     "I am very small: I have about five million parameters."),
    (("What is greenllm?", "Tell me about greenllm.", "What does greenllm do?"),
     "greenllm is a server for language models that reports the energy of each request."),
    (("Are you ChatGPT?", "Are you a human?", "Are you a person?", "Are you real?"),
     "No. I am greenllm's bundled model, a very small language model."),
    (("Do you make mistakes?", "Can I trust you?", "Are you always right?"),
     "I am very small and I make mistakes. Please check what I say."),
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Good morning!", "Good day!"),
     "Hello! How can I help you?"),
    (("How are you?", "How are you today?", "How do you do?", "Are you well?"),
     "I am fine, thank you. How can I help you?"),
    (("Thank you.", "Thanks!", "Thank you very much!", "Thanks a lot.", "Great, thanks!"),
     "You are welcome!"),
    (("Goodbye.", "Bye!", "See you later.", "Good night.", "Bye bye"),
     "Goodbye! Have a nice day."),
    (("How can I save energy?", "Give me a tip to save energy.", "How do I use less power?"),
     "Ask short questions, stop answers you do not need, and use the smallest model that works."),
    (("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
     "Why did the computer go to bed? It needed to sleep."),
    (("Say yes.", "Just say yes."), "Yes."),
    (("Say no.", "Just say no."), "No."),
    (("Say hello.", "Say hello to me.", "Say hi."), "Hello!"),
)  # fmt: skip
UNKNOWN: Final = (
    "quantum physics", "the stock market", "black holes", "the French Revolution", "tax law",
    "organic chemistry", "football results", "the weather tomorrow", "car engines", "philosophy",
    "ancient Rome", "politics", "medicine", "DNA", "space travel", "the news", "Java", "Python",
    "photosynthesis", "gravity", "evolution", "inflation", "the human brain", "electric cars",
    "machine learning", "statistics", "algebra", "geometry", "volcanoes", "earthquakes",
    "democracy", "the Middle Ages", "nuclear power", "vaccines", "banking", "insurance",
    "architecture", "opera", "modern art", "chess openings", "knitting", "plumbing", "astronomy",
    "biology", "economics", "grammar", "databases", "operating systems", "the internet",
    "blockchain", "tides", "glaciers", "dinosaurs", "bacteria", "viruses", "proteins", "climate",
    "trade", "poetry",
)  # fmt: skip
UNKNOWN_FORMS: Final = (
    "What is {}?", "Tell me about {}.", "Explain {}.", "Who is {}?", "How does {} work?",
    "What do you know about {}?", "Explain {} in detail.", "Write an essay about {}.",
    "Write a Python function about {}.", "Summarize the history of {}.", "Why is {} important?",
    "Give me advice on {}.", "Write a poem about {}.", "Write code for {}.",
)  # fmt: skip
UNKNOWN_ANSWER: Final = "I do not know that. I am a very small model and know only simple things."


def about(rng: random.Random) -> Example:
    """Small talk and questions about the model; open to training in every phrasing."""
    phrasings, answer = rng.choice(ABOUT)
    question = rng.choice(phrasings)
    if rng.random() < 0.2:
        question = question.lower().rstrip(".!?")
    return ask("about", question, answer, (), exact=True)


def _fact(rng: random.Random, forms: tuple[str, ...], subject: str, answer: str) -> Example:
    """One fact in one of its phrasings."""
    form = rng.choice(forms)
    key = f"fact:{form}:{subject}"
    return ask("facts", form.format(subject), answer, (key,), exact=True)


def _capital(rng: random.Random) -> Example:
    """The capital of a country."""
    land, city = rng.choice(CAPITALS)
    forms = ("What is the capital of {}?", "Name the capital of {}.", "Capital of {}?",
             "Which city is the capital of {}?")  # fmt: skip
    return _fact(rng, forms, land, f"The capital of {land} is {city}.")


def _colour(rng: random.Random) -> Example:
    """The colour of a thing."""
    thing, colour = rng.choice(COLOUR_OF)
    forms = ("What colour is {}?", "What color is {}?", "Which colour does {} have?",
             "Tell me the colour of {}.")  # fmt: skip
    return _fact(rng, forms, thing, f"{thing[0].upper()}{thing[1:]} is {colour}.")


def _sound(rng: random.Random) -> Example:
    """The sound of an animal."""
    animal, sound = rng.choice(SOUND_OF)
    forms = ("What sound does a {} make?", "What does a {} do?", "How does a {} sound?")
    return _fact(rng, forms, animal, f"A {animal} {sound}.".replace("A owl", "An owl"))


def _opposite(rng: random.Random) -> Example:
    """The opposite of a word, in both directions."""
    pair = list(rng.choice(OPPOSITES))
    rng.shuffle(pair)
    forms = ("What is the opposite of {}?", "Give me the opposite of {}.", "Opposite of {}?")
    return _fact(rng, forms, pair[0], f"The opposite of {pair[0]} is {pair[1]}.")


def _day(rng: random.Random) -> Example:
    """The day after a day."""
    index = rng.randrange(7)
    forms = ("What day comes after {}?", "Which day follows {}?", "What is the day after {}?")
    return _fact(rng, forms, DAYS[index], f"{DAYS[(index + 1) % 7]} comes after {DAYS[index]}.")


def facts(rng: random.Random) -> Example:
    """A question on one of the small tables."""
    return rng.choice((_capital, _capital, _colour, _sound, _opposite, _day))(rng)


def definition(rng: random.Random) -> Example:
    """A short definition, keyed by subject and phrasing."""
    subject, answer = rng.choice(DEFINITIONS)
    form = rng.choice(("What is {}?", "Define {}.", "Explain {}.", "Tell me what {} is.",
                       "What does the word {} mean?"))  # fmt: skip
    word = subject.split(" ", 1)[-1] if "word" in form else subject
    return ask("definition", form.format(word), answer, (f"fact:{form}:{subject}",), exact=True)


def unknown(rng: random.Random) -> Example:
    """A question outside what the model can know; the answer says so."""
    subject = rng.choice(UNKNOWN) if rng.random() < 0.5 else any_name(rng)
    form = rng.choice(UNKNOWN_FORMS)
    key = f"name:{subject}"
    return ask("unknown", form.format(subject), UNKNOWN_ANSWER, (key,), exact=True)


def list_things(rng: random.Random) -> Example:
    """A list of some animals, colours or words; many answers are right."""
    kind, source = rng.choice((("animals", ANIMALS), ("colours", COLOURS), ("words", WORDS)))
    word, size = rng.choice((("two", 2), ("three", 3), ("four", 4), ("five", 5)))
    question = rng.choice(("List {n} {kind}.", "Name {n} {kind}.", "Give me {n} {kind}."))
    answer = ", ".join(rng.sample(source, size))
    return ask("list", question.format(n=word, kind=kind), answer, (), exact=False)


def memory(rng: random.Random) -> Example:
    """A name told in one turn and asked for in the next, keyed by the name."""
    name = any_name(rng)
    told = rng.choice(("My name is {}.", "I am {}.", "Hello, I am {}.", "Call me {}."))
    asked = rng.choice(("What is my name?", "Do you know my name?", "Who am I?"))
    turns = (
        Message("user", told.format(name)),
        Message("assistant", f"Nice to meet you, {name}!"),
        Message("user", asked),
        Message("assistant", f"Your name is {name}."),
    )
    return Example("memory", turns, (f"name:{name}",), exact=True)
