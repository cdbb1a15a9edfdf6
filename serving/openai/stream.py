"""Server-sent events: chunks as tokens come, usage and energy at the end.

Order: chunks, the usage chunk if asked for, the comment `: energy {...}`, `data: [DONE]`. While
nothing comes, a comment keeps the connection open. A client that goes away ends the generator.

Not covered: HTTP trailers, which the HTTP/1.1 servers in use cannot send.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from greenllm.core import Token
from serving.bridge import EngineDownError, Submission
from serving.errors import ApiError
from serving.openai.forms import Form, head, mark, usage
from serving.outcome import FAILURES, failure_of, outcome_of
from serving.receipts import comment

KEEP_ALIVE = ": keep-alive\n\n"
DONE = "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(data, separators=(',', ':'), ensure_ascii=False)}\n\n"


def _token_events(batch: list[Token], form: Form, common: dict[str, Any]) -> Iterator[str]:
    """The events of some tokens; a token that tells nothing yet has none."""
    for token in batch:
        choice = form.chunk(token)
        if choice is None:
            continue
        if failure := failure_of(outcome_of(token.finish_reason), token.error):
            yield event(failure.body())
        else:
            yield event({**common, "choices": [choice]})


async def _text_of(batch: list[Token], form: Form, common: dict[str, Any]) -> str:
    """The events of some tokens as text; a scored prompt takes long, and is told beside."""

    def text() -> str:
        return "".join(_token_events(batch, form, common))

    is_long = any(token.prompt_logprobs for token in batch)
    return await asyncio.to_thread(text) if is_long else text()


async def events(
    submission: Submission,
    form: Form,
    *,
    include_usage: bool,
    keep_alive_s: float,
    interval_s: float,
    on_end: Callable[[], None],
) -> AsyncIterator[str]:
    """The whole stream of one request; `on_end` is called however it ends."""
    ending = {**head(form.request, form.chunk_object), **mark(form.request)}
    common = ending | ({"usage": None} if include_usage else {})
    try:
        for opening in form.opening():
            yield event({**common, "choices": [opening]})
        was_told = False
        async for batch in submission.batches(keep_alive_s, interval_s):
            yield KEEP_ALIVE if batch is None else await _text_of(batch, form, common)
            was_told = was_told or any(token.finish_reason in FAILURES for token in batch or ())
        if submission.receipt is not None:
            # An engine that is stopped ends requests without a last token.
            failure = None if was_told else failure_of(submission.receipt.outcome)
            if failure is not None:
                yield event(failure.body())
            if include_usage:
                yield event({**ending, "choices": [], "usage": usage(submission.receipt)})
            yield comment(submission.receipt)
        yield DONE
    except EngineDownError as error:
        yield event(ApiError(500, str(error)).body())
    finally:
        on_end()
