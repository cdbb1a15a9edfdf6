"""From HTTP bodies to `core.Request`.

A sampling field that a body declares reaches `SamplingParams` by its name: a new one needs an
entry in `SamplingBody` and in `SamplingParams`, and nothing here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from greenllm.core import (
    TOO_LONG,
    Approximation,
    Grammar,
    InvalidRequestError,
    Request,
    SamplingParams,
    Speculation,
)
from greenllm.speculation.calibrated_exit import CalibratedExit
from greenllm.tokenizer import Tokenizer
from serving.limits import MOST_LOGPROBS, check_messages
from serving.openai.schemas import (
    ChatBody,
    CompletionBody,
    ObjectFormat,
    SamplingBody,
    SchemaFormat,
)
from serving.registry import Target

DEFAULT_COMPLETION_TOKENS = 16
SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParams))


def chat_request(body: ChatBody, target: Target, *, request_id: str) -> Request:
    """Render the messages and make a request; without a limit the answer may fill the context."""
    _check_chat(body)
    tokenizer, context = target.served.tokenizer, target.served.info.context_length
    messages = check_messages([message.plain() for message in body.messages])
    prompt = tuple(tokenizer.chat_ids(messages, add_generation_prompt=True))
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if limit is None:
        limit = max(1, context - len(prompt))
    _check_length(body, len(prompt), limit, context)
    sampling = _sampling(
        body,
        max_tokens=limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        grammar=_grammar(body),
    )
    return _request(body, target, (prompt,), sampling, request_id)


def _request(
    body: SamplingBody,
    target: Target,
    prompts: tuple[tuple[int, ...], ...],
    sampling: SamplingParams,
    request_id: str,
) -> Request:
    """The parts of a request that every endpoint makes alike."""
    _check_logprobs(prompts, sampling)
    drafting, caller = target.served.drafting, target.caller
    return Request(
        request_id=request_id,
        prompts=prompts,
        work=sampling,
        model=target.served.name,
        asked_model=target.asked,
        endpoint=body.endpoint,
        key=caller.name,
        team=caller.team,
        user=body.user,
        metadata=body.metadata or {},
        cache_salt=caller.cache_salt,
        created_s=time.time(),
        speculation=_speculation(body, drafting.speculator.default.num_tokens),
        approximation=_approximation(body, drafting.exit),
    )


def _check_logprobs(prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> None:
    """How many log probabilities an answer may come to, with the alternatives to each token."""
    told, scored = sampling.logprobs, sampling.prompt_logprobs
    of_answers = 0 if told is None else len(prompts) * sampling.max_tokens * (1 + told)
    of_prompts = 0 if scored is None else sum(map(len, prompts)) * (1 + scored)
    if (asked := sampling.n * (of_answers + of_prompts)) > MOST_LOGPROBS:
        name = "prompt_logprobs" if of_prompts > of_answers else "logprobs"
        raise InvalidRequestError(
            f"{name} and the number of tokens ask for up to {asked} log probabilities, at most"
            f" {MOST_LOGPROBS} are told in one answer: ask for fewer, or lower max_tokens or n",
            name,
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
            f"the messages have {prompt_len} tokens, the context is {context}",
            "messages",
            code=TOO_LONG,
        )
    if prompt_len + limit > context:
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise InvalidRequestError(
            f"messages ({prompt_len}) and {name} ({limit}) exceed the context of {context} tokens",
            name,
            code=TOO_LONG,
        )


def completion_request(body: CompletionBody, target: Target, *, request_id: str) -> Request:
    """Encode the prompts and make a request; see `chat_request`."""
    prompts = tuple(tuple(ids) for ids in _prompt_ids(body.prompt, target.served.tokenizer))
    sampling = _sampling(
        body,
        max_tokens=DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        # Echoed prompts are scored when log probabilities are asked for.
        prompt_logprobs=body.logprobs
        if body.echo and body.logprobs is not None
        else body.prompt_logprobs,
        grammar=None,
    )
    return _request(body, target, prompts, sampling, request_id)


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


def _sampling(body: SamplingBody, **decided: Any) -> SamplingParams:
    """Every sampling field of a body by its name; the endpoint has `decided` some of them."""
    given = body.model_dump(include=set(SAMPLING_FIELDS - decided.keys()), exclude_none=True)
    for name, translate in _TRANSLATED.items():
        if name in given:
            given[name] = translate(given[name])
    return SamplingParams(**given, **decided)


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    if any(not (token.isascii() and token.isdigit()) for token in bias):
        raise InvalidRequestError("logit_bias keys must be token ids", "logit_bias")
    return {int(token): value for token, value in bias.items()}


# Fields that bodies spell differently from `SamplingParams`.
_TRANSLATED: Mapping[str, Callable[[Any], Any]] = {
    "top_k": lambda count: 0 if count == -1 else count,
    "stop": lambda stop: (stop,) if isinstance(stop, str) else tuple(stop),
    "logit_bias": _logit_bias,
}


def _speculation(body: SamplingBody, default_tokens: int) -> Speculation | None:
    asked = body.speculative
    if asked is None:
        return None
    if asked.num_tokens is not None and asked.method in ("auto", "off"):
        why = "auto finds the number itself" if asked.method == "auto" else "off drafts nothing"
        raise InvalidRequestError(
            f"speculative.num_tokens goes with a method that is named: {why}",
            "speculative.num_tokens",
        )
    return Speculation(
        asked.method, default_tokens if asked.num_tokens is None else asked.num_tokens
    )


def _approximation(body: SamplingBody, leaves_at: CalibratedExit | None) -> Approximation | None:
    asked = body.approximate
    if asked is None:
        return None
    if leaves_at is None:
        raise InvalidRequestError(
            "approximate is not available: this model has no layer to leave it at", "approximate"
        )
    return leaves_at.approximation(asked.agreement, asked.threshold)


def _grammar(body: ChatBody) -> Grammar | None:
    asked = body.response_format
    if isinstance(asked, SchemaFormat):
        return Grammar("json_schema", json.dumps(asked.json_schema.definition))
    if isinstance(asked, ObjectFormat):
        return Grammar("json_schema", json.dumps({"type": "object"}))
    return None
