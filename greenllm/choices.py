"""Answers put together from tokens: what `greenllm.LLM` returns and HTTP answers are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from greenllm.core import Event, FinishReason, Reasoning, Token, TokenLogprob, ToolCall


@dataclass(slots=True)
class Choice:
    """One answer to a prompt; a request has `n` of them for each prompt."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: FinishReason | None = None

    def take(self, event: Event) -> None:
        """Add a piece of the answer to what there is."""
        if isinstance(event, str):
            self.text += event
        elif isinstance(event, Reasoning):
            self.reasoning += event.text
        elif event.number < len(self.tool_calls):
            call = self.tool_calls[event.number]
            grown = replace(call, arguments=call.arguments + event.arguments)
            self.tool_calls[event.number] = grown
        else:
            self.tool_calls.append(event)


def gather(tokens: Iterable[Token], num_choices: int, hidden_ids: frozenset[int]) -> list[Choice]:
    """Sort tokens into choices; `hidden_ids` end an answer and are not part of it."""
    choices = [Choice() for _ in range(num_choices)]
    for token in tokens:
        choice = choices[token.index]
        for event in token.events:
            choice.take(event)
        choice.finish_reason = token.finish_reason or choice.finish_reason
        if token.prompt_logprobs:
            choice.prompt_logprobs = token.prompt_logprobs
        if token.token_id is not None and not is_hidden(token, hidden_ids):
            choice.token_ids.append(token.token_id)
            if token.logprob is not None:
                choice.logprobs.append(token.logprob)
    return choices


def is_hidden(token: Token, hidden_ids: frozenset[int]) -> bool:
    """Whether a token only ended its answer."""
    return token.finish_reason == "stop" and token.token_id in hidden_ids
