"""Answers that are not streamed, and the parts they share with streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from greenllm.core import Request, Token, TokenLogprob
from greenllm.energy.receipt import Receipt
from greenllm.tokenizer import Tokenizer
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
        offset += 0 if tokenizer.is_special(token_id) else len(tokens[-1])
    return {
        "tokens": tokens,
        "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
        "top_logprobs": [None if entry is None else _top(entry, tokenizer) for entry in entries],
        "text_offset": offsets,
    }


def _top(entry: TokenLogprob, tokenizer: Tokenizer) -> dict[str, float]:
    """Best alternatives by text; of ids with the same text the most probable one counts."""
    found: dict[str, float] = {}
    for token_id, value in (*entry.top, (entry.token_id, entry.logprob)):
        found.setdefault(tokenizer.token_text(token_id), value)
    return found


def chat_answer(
    request: Request, choices: Sequence[Choice], receipt: Receipt, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Body of `/v1/chat/completions`."""
    wants_logprobs = request.sampling.logprobs is not None
    answer: dict[str, Any] = {
        "id": request.request_id,
        "object": "chat.completion",
        "created": int(request.created_s),
        "model": request.echoed_model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": chat_logprobs(choice.logprobs, tokenizer) if wants_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage(receipt),
        **mark(request),
    }
    if request.sampling.prompt_logprobs is not None:
        scores = text_logprobs(_prompt_entries(choices[0]), request.prompts[0][0], tokenizer)
        answer["prompt_logprobs"] = scores
    return answer


def text_answer(
    request: Request,
    choices: Sequence[Choice],
    receipt: Receipt,
    tokenizer: Tokenizer,
    *,
    echo: bool,
) -> dict[str, Any]:
    """Body of `/v1/completions`."""
    return {
        "id": request.request_id,
        "object": "text_completion",
        "created": int(request.created_s),
        "model": request.echoed_model,
        "choices": [
            _text_choice(request, index, choice, tokenizer, echo=echo)
            for index, choice in enumerate(choices)
        ],
        "usage": usage(receipt),
        **mark(request),
    }


def _text_choice(
    request: Request, index: int, choice: Choice, tokenizer: Tokenizer, *, echo: bool
) -> dict[str, Any]:
    prompt = request.prompts[index // request.sampling.n]
    before = tokenizer.decode(prompt) if echo else ""
    logprobs = None
    if request.sampling.logprobs is not None:
        scored = _prompt_entries(choice) if echo else []
        logprobs = text_logprobs([*scored, *choice.logprobs], prompt[0], tokenizer)
    return {
        "index": index,
        "text": before + choice.text,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
        **_prompt_scores(request, prompt, choice, tokenizer, echo=echo),
    }


def _prompt_scores(
    request: Request,
    prompt: Sequence[int],
    choice: Choice,
    tokenizer: Tokenizer,
    *,
    echo: bool,
) -> dict[str, Any]:
    """`prompt_logprobs`, where they were asked for as such and not through echo."""
    if echo or request.sampling.prompt_logprobs is None:
        return {}
    scores = text_logprobs(_prompt_entries(choice), prompt[0], tokenizer)
    return {"prompt_logprobs": scores}


def _prompt_entries(choice: Choice) -> list[TokenLogprob | None]:
    """Scores of every prompt token; the first has nothing before it."""
    return [None, *choice.prompt_logprobs]
