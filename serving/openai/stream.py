"""Server-sent events: chunks as tokens come, usage and energy at the end.

Order: chunks, the usage chunk if asked for, the comment `: energy {...}`, `data: [DONE]`. While
nothing comes, a comment keeps the connection open. A client that goes away ends the generator, and
that aborts the request.

Not covered: HTTP trailers; the HTTP/1.1 servers in use cannot send them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from greenllm.core import Request, Token
from greenllm.tokenizer import Tokenizer
from serving.bridge import Bridge, EngineDownError, Submission
from serving.errors import ApiError
from serving.openai.answers import chat_logprobs, is_hidden, mark, text_logprobs, usage
from serving.receipts import comment

KEEP_ALIVE = ": keep-alive\n\n"
DONE = "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(data, separators=(',', ':'), ensure_ascii=False)}\n\n"


class ChatChunks:
    """Choices of chat chunks: the role first, then content, then the reason it ended."""

    object_name = "chat.completion.chunk"

    def __init__(self, request: Request, tokenizer: Tokenizer, hidden_ids: frozenset[int]) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._hidden_ids = hidden_ids

    def first(self) -> list[dict[str, Any]]:
        """One opening choice per answer."""
        delta = {"role": "assistant", "content": ""}
        count = self._request.num_sequences
        return [
            {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
            for i in range(count)
        ]

    def choice(self, token: Token) -> dict[str, Any] | None:
        """The choice for one token; None when there is nothing to tell yet."""
        logprobs = None
        if token.logprob is not None and not is_hidden(token, self._hidden_ids):
            logprobs = chat_logprobs([token.logprob], self._tokenizer)
        if not (token.text or logprobs or token.finish_reason):
            return None
        return {
            "index": token.index,
            "delta": {"content": token.text} if token.text else {},
            "logprobs": logprobs,
            "finish_reason": token.finish_reason,
        }


class TextChunks:
    """Choices of text completion chunks; echoed prompts come first."""

    object_name = "text_completion"

    def __init__(
        self, request: Request, tokenizer: Tokenizer, hidden_ids: frozenset[int], *, echo: bool
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._hidden_ids = hidden_ids
        self._echo = echo
        self._offsets = [0] * request.num_sequences
        self._scores_prompt = echo and request.sampling.prompt_logprobs is not None
        self._begun: set[int] = set()

    def first(self) -> list[dict[str, Any]]:
        """Echoed prompts; their scores come with the first token."""
        if not self._echo or self._scores_prompt:
            return []
        return [
            {"index": i, "text": self._prompt(i), "logprobs": None, "finish_reason": None}
            for i in range(self._request.num_sequences)
        ]

    def _prompt(self, index: int) -> str:
        return self._tokenizer.decode(self._request.prompts[index // self._request.sampling.n])

    def choice(self, token: Token) -> dict[str, Any] | None:
        """The choice for one token; None when there is nothing to tell yet."""
        scored: list[Any] = []
        text = token.text
        if self._scores_prompt and token.index not in self._begun:
            scored += [None, *token.prompt_logprobs]
            text = self._prompt(token.index) + text
        self._begun.add(token.index)
        if token.logprob is not None and not is_hidden(token, self._hidden_ids):
            scored.append(token.logprob)
        if not (text or scored or token.finish_reason):
            return None
        return {
            "index": token.index,
            "text": text,
            "logprobs": self._logprobs(token, scored),
            "finish_reason": token.finish_reason,
        }

    def _logprobs(self, token: Token, scored: list[Any]) -> dict[str, Any] | None:
        if self._request.sampling.logprobs is None:
            return None
        prompt = self._request.prompts[token.index // self._request.sampling.n]
        offset = self._offsets[token.index]
        found = text_logprobs(scored, prompt[0], self._tokenizer, offset=offset)
        self._offsets[token.index] += sum(len(text) for text in found["tokens"])
        return found


def failure_of(token: Token) -> ApiError | None:
    """What to tell a client whose answer ended before its time."""
    if token.finish_reason == "error":
        return ApiError(500, f"generation failed: {token.text}")
    if token.finish_reason == "abort":
        return ApiError(503, "the server shut down before the answer was complete")
    return None


def _token_events(
    batch: list[Token], chunks: ChatChunks | TextChunks, head: dict[str, Any]
) -> Iterator[str]:
    """The events of some tokens; a token that tells nothing yet has none."""
    for token in batch:
        choice = chunks.choice(token)
        if choice is None:
            continue
        if failure := failure_of(token):
            yield event(failure.body())
        else:
            yield event({**head, "choices": [choice]})


async def events(
    submission: Submission,
    bridge: Bridge,
    chunks: ChatChunks | TextChunks,
    *,
    include_usage: bool,
    keep_alive_s: float,
    interval_s: float = 0.0,
) -> AsyncIterator[str]:
    """The whole stream of one request."""
    request = submission.request
    head = {
        "id": request.request_id,
        "object": chunks.object_name,
        "created": int(request.created_s),
        "model": request.echoed_model,
        **mark(request),
    }
    no_usage = {"usage": None} if include_usage else {}
    try:
        for opening in chunks.first():
            yield event({**head, "choices": [opening], **no_usage})
        async for batch in submission.batches(keep_alive_s, interval_s):
            if batch is None:
                yield KEEP_ALIVE
                continue
            yield "".join(_token_events(batch, chunks, head | no_usage))
        if submission.receipt is not None:
            if include_usage:
                yield event({**head, "choices": [], "usage": usage(submission.receipt)})
            yield comment(submission.receipt)
        yield DONE
    except EngineDownError as error:
        yield event(ApiError(500, str(error)).body())
    finally:
        bridge.cancel(submission)
