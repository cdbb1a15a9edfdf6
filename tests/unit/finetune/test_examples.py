"""Reading examples: every form, and every mistake with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.examples import DataError, example_of, examples_of, read_examples
from finetune.data.household import SIZE, household_rows

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_conversations_prompts_and_texts_are_read(tmp_path: Path) -> None:
    (chat,) = read_examples(write(tmp_path, json.dumps(CHAT)))
    assert [(turn.role, turn.learn) for turn in chat.turns] == [
        ("user", False),
        ("assistant", True),
    ]
    (prompt,) = read_examples(write(tmp_path, '{"prompt": "a", "completion": "b"}'))
    assert (prompt.form, prompt.answer) == ("prompt", "b")
    (text,) = read_examples(write(tmp_path, '{"text": "abc"}'))
    assert (text.form, text.answer) == ("text", "abc")


def test_empty_lines_count_but_are_no_examples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl:4 is not JSON"):
        read_examples(write(tmp_path, '{"text": "a"}', "", '{"text": "b"}', "{nonsense"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "must be an object, not list"),
        ({"prompt": "a"}, "needs messages, prompt and completion, text, .*; it has prompt"),
        ({"prompt": "a", "completion": " "}, "completion must be a text that is not empty"),
        ({"prompt": 5, "completion": "b"}, "prompt must be a text"),
        ({"text": "a", "label": 1}, "keys that are not known: label"),
        ({"messages": []}, "a list with at least one message"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role must be one of"),
        ({"messages": [{"role": "user", "content": "x"}]}, "must be the assistant's"),
        ({"messages": [{"role": "assistant", "content": "x", "name": "y"}]}, "not known: name"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 2}]}, "weight must be 0"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, "no message of the"),
    ],
)
def test_a_line_that_cannot_be_used_says_why(row: Any, reason: str) -> None:
    with pytest.raises(DataError, match=f"line:9.*{reason}"):
        example_of("line:9", row)


def test_a_weight_of_zero_is_read_and_not_learnt() -> None:
    turns = [
        {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "yes", "weight": 1},
    ]
    example = example_of("x:1", {"messages": turns})
    assert [turn.learn for turn in example.turns] == [False, False, True]


def test_a_file_has_one_form(tmp_path: Path) -> None:
    lines = ('{"text": "a"}', '{"prompt": "a", "completion": "b"}')
    with pytest.raises(DataError, match=r":2 has prompt and completion where .*:1 has text"):
        read_examples(write(tmp_path, *lines))


def test_files_that_are_not_there_or_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no examples"):
        read_examples(write(tmp_path, "", ""))
    binary = tmp_path / "data.jsonl"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot read"):
        read_examples(binary)


def test_the_example_data_is_the_same_every_time_and_without_doubles() -> None:
    rows = household_rows()
    assert rows == household_rows()
    assert len({row["prompt"] for row in rows}) == len(rows) == SIZE
    assert all(json.loads(row["completion"])["kwh"] > 0 for row in rows)
    assert examples_of("example", rows)[-1].where == f"example:{SIZE}"


USER = {"role": "user", "content": "why?"}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "why?", "chosen": "so", "rejected": "no"},
        {"prompt": [USER], "chosen": said("so"), "rejected": said("no")},
        {"input": {"messages": [USER]}, "preferred_output": said("so"),
         "non_preferred_output": said("no")},
    ],
)  # fmt: skip
def test_preferences_have_a_better_and_a_worse_answer(row: dict[str, Any]) -> None:
    found = example_of("f:1", row)
    assert [(turn.role, turn.content, turn.learn) for turn in found.turns] == [
        ("user", "why?", False),
        ("assistant", "so", True),
    ]
    assert (found.answer, found.rejected) == ("so", "no")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rejected": "so "}, "chosen and rejected are the same"),
        ({"chosen": ""}, "chosen must be a text that is not empty"),
        ({"chosen": [USER]}, "chosen must be the assistant's message, not user's"),
        ({"chosen": said("a") * 2}, "a list of one message"),
        ({"prompt": said("a")}, "must not end with the assistant's message"),
        ({"prompt": []}, "a text or a list with at least one message"),
        ({"prompt": {"messages": [USER], "tools": []}}, "not known: tools"),
        ({"score": 1}, "keys that are not known: score"),
    ],
)
def test_a_preference_that_cannot_be_learnt_is_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=f"f:1: ?.*{reason}|f:1 has .*{reason}"):
        example_of("f:1", {"prompt": "why?", "chosen": "so", "rejected": "no", **changes})
