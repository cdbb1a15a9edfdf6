"""From HTTP bodies to `core.Request`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

from greenllm.core import (
    Approximation,
    InvalidRequestError,
    Request,
    SamplingParams,
    Speculation,
)
from greenllm.tokenizer import Tokenizer
from serving.openai.schemas import (
    ChatBody,
    CompletionBody,
    ObjectFormat,
    SamplingBody,
    SchemaFormat,
)
from serving.state import Defaults

DEFAULT_COMPLETION_TOKENS = 16


def new_request_id(prefix: str) -> str:
    """A unique id that sorts by time."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


def chat_request(
    body: ChatBody,
    tokenizer: Tokenizer,
    *,
    request_id: str,
    key: str | None,
    context: int,
    defaults: Defaults,
) -> Request:
    """Render the messages and make a request; without a limit the answer may fill the context."""
    _check_chat(body)
    text = tokenizer.chat(
        [message.plain() for message in body.messages], add_generation_prompt=True
    )
    prompt = tuple(tokenizer.encode(text, add_special_tokens=False))
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if limit is None:
        limit = max(1, context - len(prompt))
    _check_length(body, len(prompt), limit, context)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return Request(
        request_id=request_id,
        prompts=(prompt,),
        sampling=_sampling(body, max_tokens=limit, logprobs=logprobs),
        model=body.model,
        endpoint="/v1/chat/completions",
        key=key,
        created_s=time.time(),
        speculation=_speculation(body, defaults),
        approximation=_approximation(body, defaults),
    )


def _check_chat(body: ChatBody) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequestError(
            "give max_tokens or max_completion_tokens, not both", "max_completion_tokens"
        )


def _check_length(body: ChatBody, prompt_len: int, limit: int, context: int) -> None:
    """What the engine would refuse too, but by the names that chat requests use."""
    if prompt_len + min(1, limit) > context:
        raise InvalidRequestError(
            f"the messages have {prompt_len} tokens, the context is {context}", "messages"
        )
    if prompt_len + limit > context:
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise InvalidRequestError(
            f"messages ({prompt_len}) and {name} ({limit}) exceed the context of {context} tokens",
            name,
        )


def completion_request(
    body: CompletionBody,
    tokenizer: Tokenizer,
    *,
    request_id: str,
    key: str | None,
    defaults: Defaults,
) -> Request:
    """Encode the prompts and make a request; see `chat_request`."""
    prompts = tuple(tuple(ids) for ids in _prompt_ids(body.prompt, tokenizer))
    limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    return Request(
        request_id=request_id,
        prompts=prompts,
        sampling=_sampling(body, max_tokens=limit, logprobs=body.logprobs),
        model=body.model,
        endpoint="/v1/completions",
        key=key,
        created_s=time.time(),
        speculation=_speculation(body, defaults),
        approximation=_approximation(body, defaults),
    )


def _prompt_ids(
    prompt: str | list[str] | list[int] | list[list[int]], tokenizer: Tokenizer
) -> list[Sequence[int]]:
    if isinstance(prompt, str):
        return [tokenizer.encode(prompt)]
    if not prompt:
        raise InvalidRequestError("the prompt is empty", "prompt")
    if any(item == "" or item == [] for item in prompt):
        raise InvalidRequestError("a prompt is empty", "prompt")
    ids = [item for item in prompt if isinstance(item, int)]
    if ids:
        return [ids]
    return [tokenizer.encode(item) if isinstance(item, str) else item for item in _lists(prompt)]


def _lists(prompt: list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    return [item for item in prompt if not isinstance(item, int)]


def _sampling(body: SamplingBody, *, max_tokens: int, logprobs: int | None) -> SamplingParams:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": 0 if body.top_k == -1 else body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "min_tokens": body.min_tokens,
        "ignore_eos": body.ignore_eos,
        "n": body.n,
    }
    return SamplingParams(
        logit_bias=_logit_bias(body.logit_bias),
        seed=body.seed,
        stop=tuple(stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=_prompt_logprobs(body),
        json_schema=_json_schema(body),
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )


def _speculation(body: SamplingBody, defaults: Defaults) -> Speculation | None:
    asked = body.speculative
    if asked is None:
        return None
    if asked.num_tokens is not None and asked.method in ("auto", "off"):
        why = "auto finds the number itself" if asked.method == "auto" else "off guesses nothing"
        raise InvalidRequestError(
            f"speculative.num_tokens goes with a method that is named: {why}",
            "speculative.num_tokens",
        )
    number = defaults.num_drafts if asked.num_tokens is None else asked.num_tokens
    return Speculation(asked.method, number)


def _approximation(body: SamplingBody, defaults: Defaults) -> Approximation | None:
    asked = body.approximate
    if asked is None:
        return None
    if defaults.exit is None:
        raise InvalidRequestError(
            "approximate is not available: this model has no layer to leave it at", "approximate"
        )
    return defaults.exit.approximation(asked.agreement, asked.threshold)


def _prompt_logprobs(body: SamplingBody) -> int | None:
    """Echoed prompts are scored when log probabilities are asked for."""
    if isinstance(body, CompletionBody) and body.echo and body.logprobs is not None:
        return body.logprobs
    return body.prompt_logprobs


def _json_schema(body: SamplingBody) -> str | None:
    asked = body.response_format if isinstance(body, ChatBody) else None
    if isinstance(asked, SchemaFormat):
        return json.dumps(asked.json_schema.definition)
    return json.dumps({"type": "object"}) if isinstance(asked, ObjectFormat) else None


def _logit_bias(bias: dict[str, float] | None) -> dict[int, float]:
    if any(not (token.isascii() and token.isdigit()) for token in bias or {}):
        raise InvalidRequestError("logit_bias keys must be token ids", "logit_bias")
    return {int(token): value for token, value in (bias or {}).items()}
