"""What a model can be asked: checked before a request reaches the engine, on any thread.

Contract: a request that passes fits the context and holds only ids the model has. Not covered:
whether there is room now (see `greenllm.engine.scheduler`); sampling ranges (see
`core.SamplingParams`).
"""

from __future__ import annotations

from greenllm.core import TOO_LONG, Encode, InvalidRequestError, Request
from greenllm.model.info import ModelInfo

MAX_SEQUENCES = 1024


def check_request(request: Request, info: ModelInfo) -> None:
    """Refuse empty prompts, unknown ids, what exceeds the context, and what only encodes.

    Raises:
        InvalidRequestError: with the parameter to blame.
    """
    if isinstance(request.work, Encode):
        raise InvalidRequestError("embeddings are not served yet")
    if request.num_sequences > MAX_SEQUENCES:
        raise InvalidRequestError(
            f"{request.num_sequences} choices asked for, at most {MAX_SEQUENCES}",
            "prompt" if len(request.prompts) > 1 else "n",
        )
    if not request.prompts:
        raise InvalidRequestError("there is no prompt", "prompt")
    for prompt in request.prompts:
        _check_prompt(prompt, request.sampling.max_tokens, info)
    _check_ids(request, info)


def refuse_grammar(request: Request) -> None:
    """Refuse a grammar, for engines that cannot hold answers to one.

    Raises:
        InvalidRequestError: there is a grammar.
    """
    if request.sampling.grammar is not None:
        raise InvalidRequestError(
            "response_format (a grammar) is not supported by the native engine, only"
            ' {"type": "text"}; the engine vllm holds answers to JSON',
            "response_format",
        )


def check_approximation(request: Request) -> None:
    """Refuse what does not go together with an approximate answer.

    Raises:
        InvalidRequestError: an adapter, or draft tokens that were asked for.
    """
    if request.approximation is None:
        return
    if request.adapter is not None:
        raise InvalidRequestError(
            "approximate is not available with adapters: exits are those of the model",
            "approximate",
        )
    if request.speculation is not None and request.asks_for_drafts:
        raise InvalidRequestError(
            f"approximate and speculative {request.speculation.method} exclude each other",
            "approximate",
        )


def _check_ids(request: Request, info: ModelInfo) -> None:
    sampling, vocabulary = request.sampling, info.vocab_size
    for name, ids in (
        ("logit_bias", sampling.logit_bias),
        ("stop_token_ids", sampling.stop_token_ids),
    ):
        if not all(0 <= token_id < vocabulary for token_id in ids):
            raise InvalidRequestError(f"token ids must be in [0, {vocabulary})", name)
    ends = info.eos_token_ids | frozenset(sampling.stop_token_ids)
    if sampling.min_tokens and len(ends) >= vocabulary:
        raise InvalidRequestError("every token would end the answer", "stop_token_ids")


def _check_prompt(prompt: tuple[int, ...], max_tokens: int, info: ModelInfo) -> None:
    limit, vocabulary = info.context_length, info.vocab_size
    if not prompt:
        raise InvalidRequestError("the prompt is empty", "prompt")
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise InvalidRequestError(f"token ids must be in [0, {vocabulary})", "prompt")
    if len(prompt) + min(1, max_tokens) > limit:
        raise InvalidRequestError(
            f"the prompt has {len(prompt)} tokens, the context is {limit}", "prompt", code=TOO_LONG
        )
    if len(prompt) + max_tokens > limit:
        raise InvalidRequestError(
            f"prompt ({len(prompt)}) and max_tokens ({max_tokens}) exceed the context of"
            f" {limit} tokens",
            "max_tokens",
            code=TOO_LONG,
        )
