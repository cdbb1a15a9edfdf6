"""Answers put together from tokens, and the parts that whole answers share with streams."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from greenllm.core import Request, Token, TokenLogprob
from greenllm.energy.receipt import Receipt
from serving.receipts import energy_object


@dataclass(slots=True)
class Choice:
    """One answer, put together from its tokens."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: str | None = None


def gather(tokens: Iterable[Token], num_choices: int, hidden_ids: frozenset[int]) -> list[Choice]:
    """Sort tokens into choices; `hidden_ids` end an answer and are not part of it."""
    choices = [Choice() for _ in range(num_choices)]
    for token in tokens:
        choice = choices[token.index]
        choice.text += token.text
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


def mark(request: Request) -> dict[str, Any]:
    """What says of an answer that it may not be the whole model's."""
    return {} if request.approximation is None else {"approximate": True}


def usage(receipt: Receipt) -> dict[str, Any]:
    """OpenAI's usage object, with the energy."""
    return {
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.completion_tokens,
        "total_tokens": receipt.prompt_tokens + receipt.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": receipt.cached_tokens},
        "energy": energy_object(receipt),
    }
