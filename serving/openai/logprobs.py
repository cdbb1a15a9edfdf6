"""Log probabilities on the wire, in the shapes of chat and of text completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greenllm.core import TokenLogprob
from greenllm.tokenizer import Tokenizer


def chat_logprobs(entries: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """`choices[].logprobs` of a chat answer."""
    return {
        "content": [
            {
                **_chat_token(entry.token_id, entry.logprob, tokenizer),
                "top_logprobs": [_chat_token(i, value, tokenizer) for i, value in entry.top],
            }
            for entry in entries
        ]
    }


def _chat_token(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.token_text(token_id)
    raw = list(tokenizer.token_bytes(token_id))
    return {"token": text, "logprob": logprob, "bytes": raw}


def text_logprobs(
    entries: Sequence[TokenLogprob | None],
    first_id: int | None,
    tokenizer: Tokenizer,
    *,
    offset: int = 0,
) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion; None stands for a token with nothing before it."""
    tokens: list[str] = []
    offsets: list[int] = []
    for entry in entries:
        token_id = entry.token_id if entry is not None else first_id or 0
        tokens.append(tokenizer.token_text(token_id))
        offsets.append(offset)
        offset += shown_length(token_id, tokenizer)
    return {
        "tokens": tokens,
        "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
        "top_logprobs": [None if entry is None else _top(entry, tokenizer) for entry in entries],
        "text_offset": offsets,
    }


def shown_length(token_id: int, tokenizer: Tokenizer) -> int:
    """Characters that a token adds to the text; special ones are not in it."""
    return 0 if tokenizer.is_special(token_id) else len(tokenizer.token_text(token_id))


def _top(entry: TokenLogprob, tokenizer: Tokenizer) -> dict[str, float]:
    """Best alternatives by text; of ids with the same text the most probable one counts."""
    found: dict[str, float] = {}
    for token_id, value in (*entry.top, (entry.token_id, entry.logprob)):
        found.setdefault(tokenizer.token_text(token_id), value)
    return found
