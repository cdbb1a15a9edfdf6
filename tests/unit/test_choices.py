"""Answers are put together from events: text, reasoning and calls, each in its place."""

from __future__ import annotations

import pytest

from greenllm.choices import Choice, gather
from greenllm.core import Event, Reasoning, Token, ToolCall

EVENTS: tuple[Event, ...] = (
    Reasoning("Look "),
    Reasoning("it up."),
    "One",
    ToolCall(0, '{"pla', "call-1", "weather"),
    ToolCall(0, 'ce":"Oslo"}'),
    ToolCall(1, "{}", "call-2", "time"),
    " moment.",
)


def choice_of(*batches: tuple[Event, ...]) -> Choice:
    tokens = [Token("r", 0, number, events) for number, events in enumerate(batches)]
    (choice,) = gather(tokens, 1, frozenset())
    return choice


@pytest.mark.parametrize("size", [1, 2, 3, len(EVENTS)])
def test_pieces_come_together_however_tokens_cut_them(size: int) -> None:
    batches = [EVENTS[start : start + size] for start in range(0, len(EVENTS), size)]
    choice = choice_of(*batches)
    assert (choice.text, choice.reasoning) == ("One moment.", "Look it up.")
    assert choice.tool_calls == [
        ToolCall(0, '{"place":"Oslo"}', "call-1", "weather"),
        ToolCall(1, "{}", "call-2", "time"),
    ]


def test_the_text_of_a_token_is_its_text_alone() -> None:
    assert Token("r", 0, 1, EVENTS).text == "One moment."


def test_choices_do_not_mix() -> None:
    tokens = [Token("r", 1, 7, ("b",)), Token("r", 0, 8, ("a",), finish_reason="stop")]
    first, second = gather(tokens, 2, frozenset({8}))
    assert (first.text, first.token_ids, first.finish_reason) == ("a", [], "stop")
    assert (second.text, second.token_ids, second.finish_reason) == ("b", [7], None)
