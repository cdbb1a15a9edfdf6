"""Training examples as people write them: JSON lines, few forms, every mistake with its line.

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    {"prompt": ..., "completion": ...}
    {"text": ...}
    {"prompt": ..., "chosen": ..., "rejected": ...}
    {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}

The last two are preferences; a prompt may be a list of messages there, an answer a list of one.

Contract: all lines of a file have the same form; a line that cannot be used is an error that names
it, never a line less. A message with `"weight": 0` is read but not trained on.

Not covered: tools, images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from greenllm.config import ConfigError
from greenllm.given_files import read_text

Form = Literal["messages", "prompt", "text", "preference", "preferred_output"]
_KEYS: Mapping[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
    "preference": ("prompt", "chosen", "rejected"),
    "preferred_output": ("input", "preferred_output", "non_preferred_output"),
}
_ROLES = ("system", "user", "assistant")
MOST_BYTES = 2**32


class DataError(ConfigError):
    """The data cannot be trained on; the message says where and why, `option` whose file it is."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; only those with `learn` are trained on."""

    role: str
    content: str
    learn: bool


@dataclass(frozen=True, slots=True)
class DataLine:
    """One line: a conversation, a prompt with its completion, or a text. `where` is file:line.

    `rejected` is the worse answer of a preference; the better one is the last turn.
    """

    where: str
    form: Form
    turns: tuple[Turn, ...]
    rejected: str | None = None

    @property
    def answer(self) -> str:
        """What comes last; of a text, all of it."""
        return self.turns[-1].content


def read_examples(path: Path) -> list[DataLine]:
    """Every example of a file.

    Raises:
        DataError: the file cannot be read, a line cannot be used, or there is none.
    """
    try:
        text = read_text(path, MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    lines = ((f"{path}:{i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
    return _checked(str(path), (_parse(where, line) for where, line in lines))


def examples_of(name: str, rows: Iterable[Mapping[str, Any]]) -> list[DataLine]:
    """The same from rows that are objects already, such as those of a hub dataset."""
    numbered = ((f"{name}:{i}", row) for i, row in enumerate(rows, 1))
    return _checked(name, (example_of(where, row) for where, row in numbered))


def _checked(name: str, found: Iterator[DataLine]) -> list[DataLine]:
    examples = list(found)
    if not examples:
        raise DataError(f"{name} holds no examples")
    first = examples[0]
    for example in examples:
        if example.form != first.form:
            raise DataError(
                f"{example.where} has {_name(example.form)} where {first.where} has"
                f" {_name(first.form)}: a file has one form"
            )
    return examples


def _parse(where: str, line: str) -> DataLine:
    try:
        return example_of(where, json.loads(line))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def example_of(where: str, row: object) -> DataLine:
    """One example from its object.

    Raises:
        DataError: it has none of the forms.
    """
    found = _object(where, row)
    form = next((form for form, keys in _KEYS.items() if found.keys() >= set(keys)), None)
    if form is None:
        raise DataError(f"{where} needs {', '.join(map(_name, _KEYS))}; it has {_listed(found)}")
    _object(where, found, _KEYS[form])
    if form == "messages":
        return DataLine(where, form, _conversation(where, found))
    if form == "text":
        return DataLine(where, form, (Turn("text", _text(where, found, "text"), True),))
    if form == "prompt":
        asked = Turn("user", _text(where, found, "prompt"), False)
        answer = Turn("assistant", _text(where, found, "completion"), True)
        return DataLine(where, form, (asked, answer))
    asked_name, better, worse = _KEYS[form]
    chosen, rejected = (_answer(where, found, name) for name in (better, worse))
    if chosen.strip() == rejected.strip():
        raise DataError(f"{where}: {better} and {worse} are the same")
    turns = (*_prompt(where, found, asked_name), Turn("assistant", chosen, True))
    return DataLine(where, form, turns, rejected)


def _prompt(where: str, row: Mapping[str, Any], name: str) -> tuple[Turn, ...]:
    """What a preference is about: a text, messages, or OpenAI's object with messages."""
    if isinstance(row[name], str):
        return (Turn("user", _text(where, row, name), False),)
    if isinstance(row[name], Mapping):
        where = f"{where}: {name}"
        row, name = _object(where, row[name], ("messages",)), "messages"
    turns = _turns(where, row.get(name), name, "a text or a list")
    if turns[-1].role == "assistant":
        raise DataError(f"{where}: {name} must not end with the assistant's message")
    return tuple(replace(turn, learn=False) for turn in turns)


def _answer(where: str, row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], list):
        return _text(where, row, name)
    if len(row[name]) != 1:
        raise DataError(f"{where}: {name} must be a text or a list of one message")
    (turn,) = _turns(where, row[name], name)
    if turn.role != "assistant":
        raise DataError(f"{where}: {name} must be the assistant's message, not {turn.role}'s")
    return turn.content


def _conversation(where: str, row: Mapping[str, Any]) -> tuple[Turn, ...]:
    turns = _turns(where, row["messages"], "messages")
    if turns[-1].role != "assistant":
        raise DataError(f"{where}: the last message must be the assistant's")
    if not any(turn.learn for turn in turns):
        raise DataError(f"{where}: no message of the assistant has a weight above 0")
    return turns


def _turns(where: str, found: object, name: str, kind: str = "a list") -> tuple[Turn, ...]:
    if not isinstance(found, list) or not found:
        raise DataError(f"{where}: {name} must be {kind} with at least one message")
    return tuple(_turn(f"{where}: {name}[{i}]", item) for i, item in enumerate(found))


def _turn(where: str, item: object) -> Turn:
    row = _object(where, item, ("role", "content", "weight"))
    role, weight = row.get("role"), row.get("weight", 1)
    if role not in _ROLES:
        raise DataError(f"{where}: role must be one of {', '.join(_ROLES)}, not {role!r}")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataError(f"{where}: weight must be 0 or 1, not {weight!r}")
    return Turn(role, _text(where, row, "content"), role == "assistant" and weight == 1)


def _object(where: str, found: object, known: Sequence[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise DataError(f"{where} must be an object, not {type(found).__name__}")
    if known is not None and (unknown := found.keys() - set(known)):
        raise DataError(f"{where} has keys that are not known: {_listed(unknown)}")
    return found


def _text(where: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} must be a text that is not empty")
    return value


def _name(form: Form) -> str:
    *names, last = _KEYS[form]
    return f"{', '.join(names)} and {last}" if names else last


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
