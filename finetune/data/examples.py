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

from greenllm.core import GreenllmError

Form = Literal["messages", "prompt", "text", "preference", "preferred_output"]
_KEYS: Mapping[Form, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "prompt": frozenset({"prompt", "completion"}),
    "text": frozenset({"text"}),
    "preference": frozenset({"prompt", "chosen", "rejected"}),
    "preferred_output": frozenset({"input", "preferred_output", "non_preferred_output"}),
}
_ROLES = ("system", "user", "assistant")


class DataError(GreenllmError):
    """The data cannot be trained on; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; only those with `learn` are trained on."""

    role: str
    content: str
    learn: bool


@dataclass(frozen=True, slots=True)
class Example:
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


def read_examples(path: Path) -> list[Example]:
    """Every example of a file.

    Raises:
        DataError: the file cannot be read, a line cannot be used, or there is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    lines = ((f"{path}:{i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
    return _checked(str(path), (_parse(where, line) for where, line in lines))


def examples_of(name: str, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """The same from rows that are objects already, such as those of a hub dataset."""
    numbered = ((f"{name}:{i}", row) for i, row in enumerate(rows, 1))
    return _checked(name, (example_of(where, row) for where, row in numbered))


def _checked(name: str, found: Iterator[Example]) -> list[Example]:
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


def _parse(where: str, line: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    return example_of(where, row)


def example_of(where: str, row: object) -> Example:
    """One example from its object.

    Raises:
        DataError: it has none of the forms.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where} must be an object, not {type(row).__name__}")
    form = next((form for form, keys in _KEYS.items() if keys <= row.keys()), None)
    if form is None:
        raise DataError(f"{where} needs {', '.join(map(_name, _KEYS))}; it has {_listed(row)}")
    if unknown := row.keys() - _KEYS[form]:
        raise DataError(f"{where} has keys that are not known: {_listed(unknown)}")
    if form == "messages":
        return Example(where, form, _turns(where, row["messages"]))
    if form == "text":
        return Example(where, form, (Turn("text", _text(where, row, "text"), True),))
    if form == "prompt":
        answer = Turn("assistant", _text(where, row, "completion"), True)
        return Example(where, form, (Turn("user", _text(where, row, "prompt"), False), answer))
    if form == "preference":
        return _preference(where, form, row, ("prompt", "chosen", "rejected"))
    return _preference(where, form, row, ("input", "preferred_output", "non_preferred_output"))


def _preference(where: str, form: Form, row: Mapping[str, Any], names: Sequence[str]) -> Example:
    asked, better, worse = names
    chosen, rejected = (_answer(where, row, name) for name in (better, worse))
    if chosen.strip() == rejected.strip():
        raise DataError(f"{where}: {better} and {worse} are the same")
    turns = (*_prompt(where, row, asked), Turn("assistant", chosen, True))
    return Example(where, form, turns, rejected)


def _prompt(where: str, row: Mapping[str, Any], name: str) -> tuple[Turn, ...]:
    """What a preference is about: a text, messages, or OpenAI's object with messages."""
    found = row[name]
    if isinstance(found, Mapping):
        if unknown := found.keys() - {"messages"}:
            raise DataError(f"{where}: {name} has keys that are not known: {_listed(unknown)}")
        found, name = found.get("messages"), f"{name}.messages"
    if isinstance(found, str):
        return (Turn("user", _text(where, row, name), False),)
    if not isinstance(found, list) or not found:
        raise DataError(f"{where}: {name} must be a text or a list with at least one message")
    turns = [_turn(f"{where}: {name}[{i}]", item) for i, item in enumerate(found)]
    if turns[-1].role == "assistant":
        raise DataError(f"{where}: {name} must not end with the assistant's message")
    return tuple(replace(turn, learn=False) for turn in turns)


def _answer(where: str, row: Mapping[str, Any], name: str) -> str:
    found = row[name]
    if not isinstance(found, list):
        return _text(where, row, name)
    if len(found) != 1:
        raise DataError(f"{where}: {name} must be a text or a list of one message")
    turn = _turn(f"{where}: {name}[0]", found[0])
    if turn.role != "assistant":
        raise DataError(f"{where}: {name} must be the assistant's message, not {turn.role}'s")
    return turn.content


def _turns(where: str, found: object) -> tuple[Turn, ...]:
    if not isinstance(found, list) or not found:
        raise DataError(f"{where}: messages must be a list with at least one message")
    turns = tuple(_turn(f"{where}: messages[{i}]", row) for i, row in enumerate(found))
    if turns[-1].role != "assistant":
        raise DataError(f"{where}: the last message must be the assistant's")
    if not any(turn.learn for turn in turns):
        raise DataError(f"{where}: no message of the assistant has a weight above 0")
    return turns


def _turn(where: str, row: object) -> Turn:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} must be an object, not {type(row).__name__}")
    if unknown := row.keys() - {"role", "content", "weight"}:
        raise DataError(f"{where} has keys that are not known: {_listed(unknown)}")
    role, weight = row.get("role"), row.get("weight", 1)
    if role not in _ROLES:
        raise DataError(f"{where}: role must be one of {', '.join(_ROLES)}, not {role!r}")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataError(f"{where}: weight must be 0 or 1, not {weight!r}")
    return Turn(role, _text(where, row, "content"), role == "assistant" and weight == 1)


def _text(where: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} must be a text that is not empty")
    return value


def _name(form: Form) -> str:
    names = sorted(_KEYS[form], reverse=True)
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
