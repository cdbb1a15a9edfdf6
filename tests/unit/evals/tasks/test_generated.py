"""The generated chat examples are deterministic, split without overlap, and right.

Contract: runs without torch. Not covered: the trained weights, which are scored by
`python -m evals.studies.bundled.report`.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from evals.tasks.generated.example import Example, is_held_out, is_held_out_key
from evals.tasks.generated.stories import with_article
from evals.tasks.generated.tables import BAD_WORDS, DAYS, GOOD_WORDS, HER_NAMES, TRAITS
from evals.tasks.generated.tasks import held_out_examples, task_names, training_examples

BUNDLED = Path(__file__).parents[4] / "greenllm" / "model" / "bundled"
SAMPLE = 6_000
SCORED = (
    "addition",
    "subtraction",
    "compare",
    "count",
    "extraction",
    "json",
    "sql",
    "reading",
    "sentiment",
    "topic",
    "copy",
    "edit",
    "reverse",
    "sort",
    "upper",
    "pick",
    "facts",
    "definition",
    "unknown",
    "memory",
)


@pytest.fixture(scope="module")
def sample() -> tuple[Example, ...]:
    """The start of a training stream."""
    return tuple(islice(training_examples(3), SAMPLE))


@pytest.fixture(scope="module")
def by_task(sample: tuple[Example, ...]) -> dict[str, list[Example]]:
    """The sample and a held-out set, by the task of the last turn."""
    held_out = [e for task in SCORED for e in held_out_examples(task, 50, 1)]
    groups: dict[str, list[Example]] = {task: [] for task in task_names()}
    for example in (*sample, *held_out):
        groups[example.task].append(example)
    return groups


def question(example: Example) -> str:
    """The last thing the user said."""
    return example.messages[-2].content


def test_the_same_seed_gives_the_same_examples(sample: tuple[Example, ...]) -> None:
    assert tuple(islice(training_examples(3), SAMPLE)) == sample


def test_another_seed_gives_other_examples(sample: tuple[Example, ...]) -> None:
    other = tuple(islice(training_examples(4), SAMPLE))
    assert sum(a == b for a, b in zip(sample, other, strict=True)) < SAMPLE / 100


def test_held_out_examples_are_deterministic_and_distinct() -> None:
    first = held_out_examples("addition", 30, 1)
    assert first == held_out_examples("addition", 30, 1)
    assert len({e.prompt for e in first}) == len(first) == 30


def test_training_never_shows_a_held_out_key(sample: tuple[Example, ...]) -> None:
    assert not any(is_held_out_key(key) for example in sample for key in example.keys)


@pytest.mark.parametrize("task", SCORED)
def test_every_held_out_example_has_an_unseen_key(task: str, sample: tuple[Example, ...]) -> None:
    seen = {key for example in sample for key in example.keys}
    examples = held_out_examples(task, 50, 1)
    assert examples
    for example in examples:
        assert is_held_out(example)
        assert set(example.keys) - seen
        assert example.exact
        assert example.task == task


@pytest.mark.parametrize("task", sorted(set(task_names()) - set(SCORED)))
def test_tasks_without_one_unseen_right_answer_are_not_scored(task: str) -> None:
    assert held_out_examples(task, 20, 1) == ()


def test_every_task_occurs_in_training(sample: tuple[Example, ...]) -> None:
    counts = Counter(example.task for example in sample)
    assert set(counts) == set(task_names())
    assert min(counts.values()) > SAMPLE / 200


def test_conversations_have_the_chat_shape(sample: tuple[Example, ...]) -> None:
    for example in sample:
        roles = [m.role for m in example.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(m.content.strip() == m.content != "" for m in example.messages)
        assert not re.search(r"\{\w*\}", question(example))


def test_some_have_a_system_message_and_some_an_earlier_turn(
    sample: tuple[Example, ...],
) -> None:
    with_system = sum(e.messages[0].role == "system" for e in sample) / SAMPLE
    turns = Counter(sum(m.role == "user" for m in e.messages) for e in sample)
    assert 0.2 < with_system < 0.4
    assert turns[1] > turns[2] > 0


@pytest.mark.parametrize(("task", "sign"), [("addition", "+"), ("subtraction", "-")])
def test_arithmetic_is_right(task: str, sign: str, by_task: dict[str, list[Example]]) -> None:
    for example in by_task[task]:
        match = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", example.answer)
        assert match is not None
        left, found_sign, right, result = match.groups()
        assert found_sign == sign
        asked = sorted(int(n) for n in re.findall(r"\d+", question(example)))
        assert asked == sorted((int(left), int(right)))
        expected = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert int(result) == expected >= 0


def test_the_bigger_number_is_bigger(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["compare"]:
        asked = [int(n) for n in re.findall(r"\d+", question(example))]
        assert example.answer == f"{max(asked)} is bigger than {min(asked)}."


def test_counting_is_complete(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["count"]:
        first, last = (int(n) for n in re.findall(r"\d+", question(example)))
        assert [int(n) for n in example.answer.split(", ")] == list(range(first, last + 1))


def test_json_parses_and_holds_what_the_text_says(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["json"]:
        person = json.loads(example.answer)
        assert list(person) == [k for k in ("name", "age", "city") if k in person]
        assert "name" in person
        assert len(person) >= 2
        assert all(str(value) in question(example) for value in person.values())
        has_number = re.search(r"\d", question(example)) is not None
        assert has_number == ("age" in person)


def test_an_extracted_value_stands_in_the_text(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["extraction"]:
        kind, value = example.answer.removesuffix(".").removeprefix("The ").split(" is ")
        assert kind in question(example)
        assert value in question(example)
        assert (f"name:{value}" in example.keys) == (kind == "name")


def test_the_colour_belongs_to_the_thing_asked_for(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["reading"]:
        thing, owner, colour = (
            example.answer.removesuffix(".").split(" ", 1)[1].replace(" of ", " is ").split(" is ")
        )
        assert f"{owner} has a {colour} {thing}." in question(example)
        assert question(example).endswith(f"What colour is the {thing} of {owner}?")


def test_sentiment_follows_the_adjective(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["sentiment"]:
        words = set(re.findall(r"[a-z]+", question(example)))
        assert example.answer in ("positive", "negative")
        assert bool(words & set(GOOD_WORDS)) == (example.answer == "positive")
        assert bool(words & set(BAD_WORDS)) == (example.answer == "negative")


def test_word_tasks_are_right(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["reverse"]:
        words = question(example).rsplit(": ", 1)[1].split()
        assert example.answer.split() == words[::-1]
    for example in by_task["copy"]:
        assert question(example).endswith(f": {example.answer}")
    for example in by_task["upper"]:
        assert example.answer == question(example).rsplit(": ", 1)[1].upper()


def test_an_edit_changes_one_word_everywhere(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["edit"]:
        key = [key for key in example.keys if key.startswith("edit:")][-1]
        old, new = key.removeprefix("edit:").split(">")
        assert old != new
        assert not re.search(rf"\b{old}\b", example.answer)
        assert re.search(rf"\b{new}\b", example.answer)
        back = re.sub(rf"\b{new}\b", old, example.answer)
        assert back in re.sub(rf"\b{new}\b", old, question(example))


def run_query(query: str, columns: list[str]) -> None:
    """Raise unless SQLite accepts the query over a table with these columns."""
    [table] = re.findall(r"FROM (\w+)", query)
    with closing(sqlite3.connect(":memory:")) as database:
        names = ", ".join(f'"{column}"' for column in columns)
        database.execute(f'CREATE TABLE "{table}" ({names})')
        database.execute(re.sub(r"\b(orders|end|number)\b", r'"\1"', query))


def test_queries_run_on_the_table_of_the_question(by_task: dict[str, list[Example]]) -> None:
    """Every column and value of the query stands in the question."""
    for example in by_task["sql"]:
        text = question(example)
        listed = next(m for m in re.findall(r"(?:\w+, ){3,}\w+", text))
        run_query(example.answer, listed.split(", "))
        [table] = re.findall(r"FROM (\w+)", example.answer)
        assert table in text
        assert all(value in text for value in re.findall(r"'(\w+)'", example.answer))


def test_sorting_is_alphabetical(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["sort"]:
        words = question(example).rsplit(": ", 1)[1].split(", ")
        assert example.answer.split(", ") == sorted(words)


def test_the_picked_word_is_first_or_last(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["pick"]:
        words = question(example).rsplit(": ", 1)[1].split()
        index = 0 if "first" in question(example) else -1
        assert example.answer.removesuffix(".").split()[-1] == words[index]


def test_a_told_name_is_remembered(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["memory"]:
        name = example.keys[-1].removeprefix("name:")
        assert name in example.messages[-4].content
        assert example.answer == f"Your name is {name}."


def test_days_follow_each_other(by_task: dict[str, list[Example]]) -> None:
    pairs = [re.fullmatch(r"(\w+day) comes after (\w+day)\.", e.answer) for e in by_task["facts"]]
    found = [match.groups() for match in pairs if match]
    assert found
    assert all(DAYS.index(after) == (DAYS.index(day) + 1) % 7 for after, day in found)


def test_stories_keep_their_hero_and_lesson(by_task: dict[str, list[Example]]) -> None:
    lessons = dict(TRAITS)
    for example in by_task["story"]:
        trait, animal = example.keys[-1].removeprefix("hero:").split()
        assert with_article(f"{trait} {animal}") in example.answer
        assert example.answer.endswith(f"{lessons[trait]}.")
        assert "{" not in example.answer


def test_stories_use_one_pronoun(by_task: dict[str, list[Example]]) -> None:
    for example in by_task["story"]:
        words = set(re.findall(r"[A-Za-z]+", example.answer))
        is_her = bool(words & set(HER_NAMES))
        assert not words & ({"he", "He", "his"} if is_her else {"she", "She", "her"})


def test_stories_vary(by_task: dict[str, list[Example]]) -> None:
    texts = [example.answer for example in by_task["story"]]
    assert len(set(texts)) > 0.99 * len(texts)


def test_the_recorded_energy_follows_from_the_recorded_times() -> None:
    record = json.loads((BUNDLED / "training.json").read_text())
    expected_j = record["cpu_s"] * 1.50 + record["wall_s"] * 2 * 0.46
    assert record["energy_modelled_j"] == pytest.approx(expected_j, abs=0.1)


def test_the_record_scores_every_task_that_can_be_scored() -> None:
    record = json.loads((BUNDLED / "training.json").read_text())
    assert tuple(record["held_out"]) == SCORED
    assert all(0 <= s["right"] <= s["asked"] for s in record["held_out"].values())


def test_generating_does_not_load_torch() -> None:
    code = (
        "import sys; import evals.tasks.generated.tasks as t; next(t.training_examples(1)); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
