"""Between greenllm's vocabulary and vLLM's: sampling parameters there, log probabilities back.

Contract: what vLLM cannot do here is refused by `refuse` with the parameter and the reason before
anything is queued. vLLM is told where answers end, and greenllm decides it again by its own rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from greenllm.core import InvalidRequestError, Request, SamplingParams, Speculation, TokenLogprob
from greenllm.core import Sequence as TokenSequence

# What vLLM allows for, set when it is made.
MOST_LOGPROBS = 32


def refuse(request: Request, own: Speculation) -> None:
    """Refuse what this engine cannot do; `own` is the one way it drafts.

    Raises:
        InvalidRequestError: with the parameter to blame.
    """
    if request.approximation is not None:
        raise InvalidRequestError(
            "approximate answers need early exits, which vLLM does not have; use --engine native",
            "approximate",
        )
    _refuse_speculation(request.speculation, own)
    _refuse_beside_grammar(request.sampling)
    for name in ("logprobs", "prompt_logprobs"):
        asked = getattr(request.sampling, name)
        if asked is not None and asked > MOST_LOGPROBS:
            raise InvalidRequestError(f"{name} may be {MOST_LOGPROBS} at most here", name)


def _refuse_speculation(asked: Speculation | None, own: Speculation) -> None:
    if asked is not None and asked != own:
        what = own.method if own.method == "off" else f"{own.method}, {own.num_tokens} tokens"
        raise InvalidRequestError(
            f"vLLM drafts in one way for all requests, here {what}; leave speculative out, or"
            " start the server with another --speculative",
            "speculative.method",
        )


def _refuse_beside_grammar(sampling: SamplingParams) -> None:
    """An answer held to a grammar ends where the grammar says."""
    if sampling.grammar is None:
        return
    for name in ("ignore_eos", "min_tokens", "stop_token_ids"):
        if getattr(sampling, name):
            raise InvalidRequestError(
                f"{name} does not go with response_format, which says where the answer ends", name
            )


def sampling_values(seq: TokenSequence) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams`; an answer of no tokens is one that is thrown away."""
    sampling = seq.sampling
    room = seq.max_len - seq.prompt_len
    return {
        "temperature": 0.0 if sampling.is_greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "seed": None if sampling.is_greedy else seq.seed % 2**63,
        "stop_token_ids": sorted({*sampling.stop_token_ids, *_ends(seq)}),
        "ignore_eos": True,  # the model's own ends are among the above
        "min_tokens": min(sampling.min_tokens, max(1, room)),
        "max_tokens": max(1, room),
        "logprobs": sampling.logprobs,
        "prompt_logprobs": sampling.prompt_logprobs,
        "detokenize": False,
        "grammar": sampling.grammar,
    }


def _ends(seq: TokenSequence) -> frozenset[int]:
    return frozenset() if seq.sampling.ignore_eos else seq.eos_token_ids


def logprobs_of(
    token_ids: Sequence[int], found: Sequence[Mapping[int, Any]] | None, count: int
) -> tuple[TokenLogprob, ...]:
    """Of generated or prompt tokens, each with the `count` most probable ones, best first."""
    if found is None:
        return ()
    return tuple(
        _logprob(token_id, at, count) for token_id, at in zip(token_ids, found, strict=True)
    )


def _logprob(token_id: int, at: Mapping[int, Any], count: int) -> TokenLogprob:
    ranked = sorted((entry.rank, other) for other, entry in at.items() if entry.rank <= count)
    top = tuple((other, at[other].logprob) for _, other in ranked)
    return TokenLogprob(token_id, at[token_id].logprob, top)
