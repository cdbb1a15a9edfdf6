"""Tasks: what is read, what an answer is worth, and that a model without sense is at chance."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evals.evaluation import TaskResult, evaluate
from evals.served import QueryCost, windows_of
from evals.tasks.asked import KINDS, Question, Questions
from evals.tasks.base import Answer, Ask, Query, Rate, Rating, Task, TaskError
from evals.tasks.registry import Generated, find_tasks

COST = QueryCost(2.0, 1.0, 0.1, 10, 5, False, "modelled")


class Constant:
    """Says the same to everything, and finds everything alike."""

    async def answer(self, query: Query) -> tuple[Answer, QueryCost]:
        if isinstance(query, Ask):
            return Answer("the"), COST
        return Answer(ratings=tuple(Rating(-1.0, 1) for _ in query.pairs)), COST


class Dice:
    """Rates by the throw of a die, and answers with any of the words it was given."""

    def __init__(self, words: Sequence[str], seed: int = 0) -> None:
        self._words, self._source = words, random.Random(seed)

    async def answer(self, query: Query) -> tuple[Answer, QueryCost]:
        if isinstance(query, Ask):
            return Answer(self._source.choice(self._words)), COST
        ratings = tuple(Rating(-self._source.random(), 1) for _ in query.pairs)
        return Answer(ratings=ratings), COST


def write(folder: Path, name: str, *rows: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def find(*names: str, limit: int | None = None, shots: int = 0) -> list[Task]:
    def make(size: int, seed: int) -> list[Question]:
        return [
            Question(({"role": "user", "content": f"{seed}:{i}"},), str(i)) for i in range(size)
        ]

    made = {"echo": Generated("exact", make), "more": Generated("json", make)}
    return find_tasks(names, made, limit=limit, shots=shots, seed=3)


def run(task: Task, model: Any) -> TaskResult:
    return asyncio.run(evaluate(model, task, 8, lambda done, count: None))


def pairs(folder: Path, count: int = 400) -> Task:
    rows = [{"sentence_good": f"good {i}", "sentence_bad": f"bad {i}"} for i in range(count)]
    (task,) = find(f"pairs:{write(folder, 'pairs.jsonl', *rows)}")
    return task


def quiz(folder: Path, count: int = 400) -> Task:
    rows = [
        {"question": f"what {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4}
        for i in range(count)
    ]
    (task,) = find(f"choice:{write(folder, 'quiz.jsonl', *rows)}")
    return task


def test_a_model_that_finds_all_alike_gets_none_right(tmp_path: Path) -> None:
    for task in (pairs(tmp_path), quiz(tmp_path)):
        assert run(task, Constant()).figure().value == 0.0


def test_a_model_that_rates_at_random_is_at_chance(tmp_path: Path) -> None:
    for task, chance in ((pairs(tmp_path), 0.5), (quiz(tmp_path), 0.25)):
        found = run(task, Dice([])).figure()
        assert task.chance == chance
        assert found.low < chance < found.high


def test_a_model_that_answers_at_random_is_at_chance(tmp_path: Path) -> None:
    words = ["left", "right", "up", "down"]
    rows = [{"prompt": f"where {i}?", "answer": words[i % 4]} for i in range(400)]
    (task,) = find(f"exact:{write(tmp_path, 'qa.jsonl', *rows)}")
    assert run(task, Constant()).figure().value == 0.0
    found = run(task, Dice(words)).figure()
    assert found.low < 0.25 < found.high


def test_the_right_one_must_be_likelier_than_every_other(tmp_path: Path) -> None:
    task = quiz(tmp_path)
    ratings = [Rating(-2.0, 1), Rating(-1.0, 1), Rating(-1.0, 1), Rating(-3.0, 1)]
    assert task.score(1, Answer(ratings=tuple(ratings))).value == 0.0
    ratings[2] = Rating(-1.1, 1)
    assert task.score(1, Answer(ratings=tuple(ratings))).value == 1.0
    assert task.score(2, Answer(ratings=tuple(ratings))).value == 0.0


def test_bits_per_byte_weigh_texts_by_their_bytes(tmp_path: Path) -> None:
    (task,) = find(f"perplexity:{write(tmp_path, 'book.txt', 'abc', '', 'ä')}")
    assert task.count() == 2
    assert task.example(0) == Rate((("", "abc"),))
    scores = [task.score(i, Answer(ratings=(Rating(-math.log(2) * 6, 3),))) for i in (0, 1)]
    assert [score.weight for score in scores] == [3, 2]
    assert [score.value for score in scores] == pytest.approx([6, 6])
    result = run(task, Constant())
    assert result.figure().value == pytest.approx(2 / math.log(2) / 5)
    assert result.joules_per_correct() is None


@pytest.mark.parametrize(
    ("kind", "text", "wanted", "is_right"),
    [
        ("exact", " yes\n", "yes", True),
        ("exact", "Yes", "yes", False),
        ("json", '{"a":1, "b": [2]}', '{"b": [2], "a": 1}', True),
        ("json", '{"a": 1', '{"a": 1}', False),
        ("json", "the", '{"a": 1}', False),
        ("sql", "select Name from t where x='Ann';", "SELECT name FROM t WHERE x = 'Ann'", True),
        ("sql", "SELECT name FROM t WHERE x = 'ann'", "SELECT name FROM t WHERE x = 'Ann'", False),
        ("number", "so 3 + 4 = 7 eggs, 1,007 in all.", "#### 1007", True),
        ("number", "none", "#### 0", False),
        ("number", "-5", "5", False),
    ],
)
def test_answers_are_compared_by_their_kind(
    kind: str, text: str, wanted: str, is_right: bool
) -> None:
    assert KINDS[kind].matches(text, wanted) is is_right


def test_shots_come_first_and_are_not_asked(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(5)]
    path = write(tmp_path, "qa.jsonl", *rows)
    (task,) = find(f"exact:{path}", limit=2, shots=2)
    assert task.count() == 2
    asked = task.example(0)
    assert isinstance(asked, Ask)
    assert [turn["content"] for turn in asked.turns] == ["q0", "a0", "q1", "a1", "q2"]
    with pytest.raises(TaskError, match="5 questions, no more than --shots 5"):
        find(f"exact:{path}", shots=5)


def test_a_folder_is_read_in_turns(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"sentence_good": f"{name}{i}", "sentence_bad": f"x{i}"} for i in range(3)]
        write(tmp_path, f"blimp/{name}.jsonl", *rows)
    (task,) = find(f"pairs:{tmp_path / 'blimp'}", limit=3)
    good = [task.example(i).pairs[0][1] for i in range(3)]  # type: ignore[union-attr]
    assert good == ["a0", "b0", "a1"]


def test_generated_sets_are_named_or_taken_all() -> None:
    assert [task.name for task in find("generated")] == ["generated.echo", "generated.more"]
    (task,) = find("generated.echo", limit=4)
    assert task.count() == 4
    assert isinstance(task, Questions)
    assert task.score(2, Answer("2")).value == 1.0


def test_a_python_file_brings_tasks_of_ones_own(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "own.py",
        "from evals.tasks.base import Ask, Score",
        "class Own:",
        "    name, measure, chance = 'own', 'accuracy', None",
        "    def count(self): return 3",
        "    def example(self, i): return Ask(({'role': 'user', 'content': str(i)},))",
        "    def score(self, i, answer): return Score(0.5 if answer.text == 'the' else 0.0)",
        "def tasks(): return [Own()]",
    )
    (task,) = find(str(path))
    assert run(task, Constant()).figure().value == 0.5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "no tasks were named|there is no task ''"),
        ("mmlu", "there is no task 'mmlu'; there are perplexity, pairs"),
        ("generated.mmlu", "there is no generated.mmlu; there are echo, more"),
        ("exact:{}/none.jsonl", "cannot read"),
        ("exact:{}/broken.jsonl", r"broken\.jsonl:2 is not JSON"),
        ("exact:{}/list.jsonl", r"list\.jsonl:1 must be an object, not list"),
        ("exact:{}/twice.jsonl", r"twice\.jsonl:1 needs one of messages, prompt, question; .* 2"),
        ("exact:{}/empty.jsonl", "holds no examples"),
        ("pairs:{}/one.jsonl", r"one\.jsonl:1 needs two texts"),
        ("choice:{}/few.jsonl", r"few\.jsonl:1 needs a question and at least two choices"),
        ("choice:{}/far.jsonl", r"far\.jsonl:1: answer must be one of the choices"),
        ("{}/bad.py", r"bad\.py needs a function tasks\(\)"),
        ("{}/half.py", r"half\.py: object has no name, measure"),
    ],
)
def test_what_cannot_be_read_says_where(tmp_path: Path, name: str, reason: str) -> None:
    write(tmp_path, "broken.jsonl", {"prompt": "a", "answer": "b"}, "{nonsense")
    write(tmp_path, "list.jsonl", [1])
    write(tmp_path, "twice.jsonl", {"prompt": "a", "question": "a", "answer": "b"})
    write(tmp_path, "empty.jsonl", "")
    write(tmp_path, "one.jsonl", {"sentence_good": "a"})
    write(tmp_path, "few.jsonl", {"question": "a", "choices": ["b"], "answer": 0})
    write(tmp_path, "far.jsonl", {"question": "a", "choices": ["b", "c"], "answer": 2})
    write(tmp_path, "bad.py", "x = 1")
    write(tmp_path, "half.py", "def tasks(): return [object()]")
    with pytest.raises(TaskError, match=reason):
        find(name.format(tmp_path))


def test_a_right_answer_costs_the_wrong_ones_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "answer": "the" if i < 5 else "a"} for i in range(20)]
    (task,) = find(f"exact:{write(tmp_path, 'qa.jsonl', *rows)}")
    result = run(task, Constant())
    found = result.joules_per_correct()
    assert found is not None
    assert found.value == pytest.approx(20 * COST.joules / 5)  # type: ignore[operator]
    assert found.low < found.value < found.high
    written = result.as_dict()
    assert written["energy_j"] == pytest.approx(40)
    assert written["accuracy_per_joule"] == pytest.approx(0.25 / 2)
    assert written["tokens"] == 20 * 15


def test_joules_are_unknown_where_the_server_says_none(tmp_path: Path) -> None:
    class Silent(Constant):
        async def answer(self, query: Query) -> tuple[Answer, QueryCost]:
            answer, _ = await super().answer(query)
            return answer, QueryCost(None, None, None, 1, 1)

    written = run(quiz(tmp_path, 4), Silent()).as_dict()
    for name in ("energy_j", "grams", "joules_per_example", "joules_per_correct"):
        assert written[name] is None
    assert written["value"]["value"] == 0.0


@pytest.mark.parametrize("length", [1, 5, 9, 10, 11, 19, 20, 57])
def test_windows_rate_every_token_once(length: int) -> None:
    ids = list(range(100, 100 + length))
    windows = windows_of([7], ids, longest=10)
    assert [i for window in windows for i in window.ids] == ids
    everything = [7, *ids]
    for window in windows:
        assert len(window.context) >= 1
        assert len(window.context) + len(window.ids) <= 10
        start = everything.index(window.ids[0])
        assert tuple(everything[start - len(window.context) : start]) == window.context


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    (window,) = windows_of(list(range(20)), [50, 51], longest=10)
    assert window.context == tuple(range(12, 20))
    assert window.ids == (50, 51)
