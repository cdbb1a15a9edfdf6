"""Tasks by their names: `KIND:FILE`, a Python file of one's own, or a generated set.

    perplexity:book.txt   pairs:blimp/    choice:quiz.jsonl
    exact:qa.jsonl   json:qa.jsonl   sql:qa.jsonl   number:gsm8k.jsonl
    my_tasks.py           generated       generated.sort

Contract: what cannot be read is an error that names the file and the line. A Python file has a
function `tasks()` that returns tasks, see `base.Task`. Generated sets are given from outside, so
that this module knows nothing of who makes them.

Not covered: downloading.
"""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evals.tasks.asked import KINDS, Question, Questions, question_of
from evals.tasks.base import Task, TaskError
from evals.tasks.rated import Choices, Perplexity, choice_of, pair_of

GENERATED = "generated"
_BETWEEN = re.compile(r"\n\s*\n")
_RATED = ("perplexity", "pairs", "choice")
_USUAL = f"{', '.join((*_RATED, *KINDS))} (each with :FILE), {GENERATED}, or a file.py"
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Generated:
    """A set of questions that is made, not read: its kind of comparing, and a way to make some."""

    kind: str
    make: Callable[[int, int], Sequence[Question]]


def find_tasks(
    names: Sequence[str],
    generated: Mapping[str, Generated],
    *,
    limit: int | None,
    shots: int,
    seed: int,
) -> list[Task]:
    """The tasks that are meant, each cut to `limit` examples.

    Raises:
        TaskError: there is no such task, or it cannot be read.
    """
    found: list[Task] = []
    for name in names:
        found += _tasks(name, generated, limit, shots, seed)
    if not found:
        raise TaskError(f"no tasks were named; there are {_USUAL}")
    return found


def _tasks(
    name: str, generated: Mapping[str, Generated], limit: int | None, shots: int, seed: int
) -> list[Task]:
    if name.endswith(".py"):
        return _own_tasks(Path(name))
    if name == GENERATED or name.startswith(f"{GENERATED}."):
        return _generated(name, generated, limit, shots, seed)
    kind, _, place = name.partition(":")
    if not place or kind not in (*_RATED, *KINDS):
        raise TaskError(f"there is no task {name!r}; there are {_USUAL}")
    return [_from_file(name, kind, Path(place), limit, shots)]


def _from_file(name: str, kind: str, path: Path, limit: int | None, shots: int) -> Task:
    if kind in KINDS:
        how, items = (
            KINDS[kind],
            _items(path, question_of, None if limit is None else limit + shots),
        )
        if len(items) <= shots:
            raise TaskError(f"{path} has {len(items)} questions, no more than --shots {shots}")
        return Questions(name, items[shots:], how.matches, how.max_tokens, items[:shots])
    if shots:
        raise TaskError(f"--shots does not go with {kind}, only with {', '.join(KINDS)}")
    if kind == "perplexity":
        return Perplexity(name, _texts(path)[:limit])
    make = pair_of if kind == "pairs" else choice_of
    return Choices(name, _items(path, make, limit))


def _items(
    path: Path, make: Callable[[str, Mapping[str, Any]], Item], limit: int | None
) -> list[Item]:
    """Items of a JSONL file, or of all in a folder, taken in turns so that a limit is fair."""
    files = sorted(path.glob("**/*.jsonl")) if path.is_dir() else [path]
    columns = [[make(where, row) for where, row in _rows(file, limit)] for file in files]
    longest = max(map(len, columns), default=0)
    found = [column[i] for i in range(longest) for column in columns if i < len(column)]
    if not found:
        raise TaskError(f"{path} holds no examples")
    return found[:limit]


def _rows(path: Path, limit: int | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_read(path).split("\n"), 1):
        if limit is not None and limit <= 0:
            return
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, Mapping):
            raise TaskError(f"{where} must be an object, not {type(row).__name__}")
        limit = None if limit is None else limit - 1
        yield where, row


def _texts(path: Path) -> list[str]:
    """Texts of a JSONL file with `text`, or of a text file, where empty lines stand between."""
    if path.suffix == ".jsonl":
        return _items(path, _text_of, None)
    found = [text.strip() for text in _BETWEEN.split(_read(path))]
    if not any(found):
        raise TaskError(f"{path} holds no text")
    return [text for text in found if text]


def _text_of(where: str, row: Mapping[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text:
        raise TaskError(f"{where} needs a text")
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read {path}: {error}") from error


def _own_tasks(path: Path) -> list[Task]:
    _read(path)
    try:
        found = list(runpy.run_path(str(path))["tasks"]())
    except Exception as error:
        raise TaskError(f"{path} needs a function tasks() that returns tasks: {error!r}") from error
    parts = ("name", "measure", "chance", "count", "example", "score")
    for task in found:
        if missing := [part for part in parts if not hasattr(task, part)]:
            raise TaskError(f"{path}: {type(task).__name__} has no {', '.join(missing)}")
    return found


def _generated(
    name: str, generated: Mapping[str, Generated], limit: int | None, shots: int, seed: int
) -> list[Task]:
    one = name.partition(".")[2]
    if one and one not in generated:
        raise TaskError(f"there is no {name}; there are {', '.join(generated)}")
    found: list[Task] = []
    for part in [one] if one else list(generated):
        how, kind = generated[part], KINDS[generated[part].kind]
        items = how.make((limit or _SIZE) + shots, seed)
        found.append(
            Questions(f"{GENERATED}.{part}", items[shots:], kind.matches, 200, items[:shots])
        )
    return found


_SIZE = 100
