"""Short stories from a grammar: a hero, a plot of four stages, and a lesson that fits the trait.

Contract: a story keeps one hero, one helper and one place from start to end. Not covered:
anything beyond the plots below; the trained model knows only these kinds of story.
"""

from __future__ import annotations

import random
from typing import Final

from evals.tasks.generated.example import Example, ask, is_held_out_key
from evals.tasks.generated.tables import ANIMALS, HER_NAMES, HIS_NAMES, PLACES, TRAITS

PROMPTS: Final = (
    "Tell me a story about {hero}.",
    "Write a short story about {hero}.",
    "Can you tell me a story about {hero}?",
    "I want to hear a story about {hero}.",
    "Please write a story about {hero}.",
    "Make up a story about {hero}.",
)
OPENINGS: Final = (
    "Once upon a time, {hero} named {name} lived {place}.",
    "{name} was {hero} who lived {place}.",
    "Long ago, there was {hero} named {name}. {He} lived {place}.",
    "There once was {hero} called {name}, who had a home {place}.",
)
MORNINGS: Final = (
    "One morning, ", "One sunny day, ", "One cold evening, ", "One day, ", "On a windy afternoon, ",
)  # fmt: skip
Plot = tuple[tuple[str, ...], ...]
PLOTS: Final[tuple[Plot, ...]] = (
    (
        ("{name} could not find {his} {thing}.", "{name} saw that {his} {thing} was gone."),
        ("{He} looked behind every stone and under every leaf.",
         "{He} searched from morning until noon, but found nothing."),
        ("Then {a_helper} came by and asked, \"Why are you so sad?\" {name} told the whole story.",
         "{A_helper} heard about it and said, \"Let us look together.\""),
        ("Together they found the {thing} next to the path, and {name} danced with joy.",
         "In the end the {thing} was inside {his} own bag, and both friends laughed."),
    ),
    (
        ("a big storm came and the wind shook the trees.",
         "dark clouds came and it began to rain."),
        ("{name} heard a small voice calling for help.",
         "{name} saw {a_helper} alone in the rain."),
        ("{He} ran out and brought the {helper} home.",
         "{He} took the {helper} by the hand and led the way."),
        ("They drank hot tea until the storm was over.",
         "They sat by the fire and told jokes until the sun came back."),
    ),
    (
        ("{name} heard a strange noise in the dark.",
         "{name} saw a strange light between the trees."),
        ("{He} was afraid, but {he} wanted to know what it was.",
         "{He} took a deep breath and walked closer."),
        ("It was only {a_helper} with a {thing}.",
         "Behind a bush sat {a_helper} who was looking for a {thing}."),
        ("\"I am glad you came,\" said the {helper}, and they walked home together.",
         "They laughed about it and became good friends."),
    ),
    (
        ("{name} wanted to cross the water, but there was no bridge.",
         "{name} came to deep water and could not go on."),
        ("{He} tried to jump, but it was too far.", "{He} thought about it for a long time."),
        ("{A_helper} said, \"I know how to build a bridge.\"",
         "{A_helper} said, \"We can make a boat from wood.\""),
        ("They worked all day, and in the evening they stood on the other side.",
         "Soon they were on the other side, tired but happy."),
    ),
    (
        ("{name} found a basket full of apples.", "{name} baked a very big cake."),
        ("{He} wanted to eat everything alone.", "{He} sat down and took the first bite."),
        ("Then {a_helper} came by, thin and hungry.",
         "Then {he} saw {a_helper} who had nothing to eat."),
        ("{name} shared the food, and they both went to bed full and happy.",
         "{name} gave half of it away, and it tasted better than ever."),
    ),
    (
        ("all the animals met for a big race.", "{a_helper} asked {name} to run a race."),
        ("{name} ran as fast as {he} could.", "{name} was in front from the start."),
        ("Near the end, the {helper} fell and hurt a foot.",
         "Half way, the {helper} fell into a hole."),
        ("{name} stopped to help, and they crossed the line together.",
         "{name} turned back to help, and everyone cheered for both of them."),
    ),
    (
        ("{name} met {a_helper} who could sing.", "{name} heard {a_helper} sing a sad song."),
        ("\"Will you teach me?\" asked {name}.", "\"Why is your song so sad?\" asked {name}."),
        ("\"I will, if you are my friend,\" said the {helper}.",
         "\"I have no one to sing with,\" said the {helper}."),
        ("From that day on, they sang together every evening.",
         "So {name} sang too, and the song became a happy one."),
    ),
    (
        ("{name} got a map with a red cross on it.", "{name} found an old map under a stone."),
        ("{He} followed the map over three hills.", "{He} asked {a_helper} to read it."),
        ("At the red cross, {name} and the {helper} began to dig.",
         "The {helper} knew the way and walked in front."),
        ("They found a {thing}, and it was the best treasure they could think of.",
         "There was no gold, only a {thing}, but they were happy to have found it together."),
    ),
)  # fmt: skip
STORY_THINGS: Final = ("red ball", "blue kite", "golden key", "lantern", "warm hat", "silver bell",
                       "wooden boat", "little drum")  # fmt: skip
ENDINGS: Final = (
    "That night, {name} learned that {lesson}.",
    "And {name} never forgot that {lesson}.",
    "Since then, everyone who lives {place} knows that {lesson}.",
)


def with_article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def story_names() -> tuple[str, ...]:
    """Names that may appear in stories, which are all open to training."""
    return tuple(n for n in HER_NAMES + HIS_NAMES if not is_held_out_key(f"name:{n}"))


def _slots(rng: random.Random, trait: str, animal: str, name: str) -> dict[str, str]:
    """The words that stay the same through one story."""
    helper = rng.choice([a for a in ANIMALS if a != animal])
    he, his = ("she", "her") if name in HER_NAMES else ("he", "his")
    place = rng.choice(PLACES)
    return {
        "hero": with_article(f"{trait} {animal}"), "name": name, "place": place, "he": he,
        "He": he.capitalize(), "his": his, "helper": helper, "a_helper": with_article(helper),
        "A_helper": with_article(helper).capitalize(), "thing": rng.choice(STORY_THINGS),
        "lesson": dict(TRAITS)[trait],
    }  # fmt: skip


def _plot(rng: random.Random, start: str) -> list[str]:
    """One plot, with any missing mention of the helper made explicit."""
    stages = [rng.choice(stage) for stage in rng.choice(PLOTS)]
    seen = False
    for index, stage in enumerate(stages):
        if not seen and "{helper}" in stage and "a_helper" not in stage.lower():
            stages[index] = stage.replace("the {helper}", "{a_helper}", 1)
        seen = seen or "helper}" in stage
    return [start + stages[0], *stages[1:]]


def tell(rng: random.Random, trait: str, animal: str, name: str, long: bool) -> str:
    """A whole story about one hero; a long one has a second plot."""
    lines = [rng.choice(OPENINGS), *_plot(rng, rng.choice(MORNINGS))]
    slots = _slots(rng, trait, animal, name)
    text = " ".join(lines).format(**slots)
    if long:
        again = " ".join(_plot(rng, "The next day, "))
        text += " " + again.format(**slots | {"thing": rng.choice(STORY_THINGS)})
    return text + " " + rng.choice(ENDINGS).format(**slots)


def story(rng: random.Random) -> Example:
    """A story about a hero the user describes; keyed by the description."""
    trait, animal = rng.choice(TRAITS)[0], rng.choice(ANIMALS)
    name, long = rng.choice(story_names()), rng.random() < 0.15
    hero = with_article(f"{trait} {animal}")
    if rng.random() < 0.25:
        hero += f" named {name}"
    question = rng.choice(PROMPTS).format(hero=hero)
    if long:
        question = question.replace("a story", "a long story").replace("short", "long")
    if not long and rng.random() < 0.08:
        question = rng.choice(("Tell me a story.", "Write a story.", "Tell me a short story."))
    key = f"hero:{trait} {animal}"
    return ask("story", question, tell(rng, trait, animal, name, long), (key,), exact=False)
