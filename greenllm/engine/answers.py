"""How an answer grows: sampled tokens are added to their sequence, until one of them ends it.

Contract: for the native engine and for vLLM alike. What raises here belongs to one request (see
`greenllm.fence`). No torch, no HTTP.
"""

from __future__ import annotations

from itertools import zip_longest

from greenllm.core import Event, Sample, Sequence, Token, TokenLogprob


def append_all(seq: Sequence, sample: Sample) -> list[Token]:
    """Add the sampled tokens to their sequence, up to the one that ends it."""
    if not sample.token_ids:
        return [_append(seq, None, None)]
    tokens: list[Token] = []
    for token_id, logprob in zip_longest(sample.token_ids, sample.logprobs):
        tokens.append(_append(seq, token_id, logprob))
        if seq.is_finished:
            break
    return tokens


def _append(seq: Sequence, token_id: int | None, logprob: TokenLogprob | None) -> Token:
    """Add a token to its sequence and decide whether the sequence ends."""
    events: tuple[Event, ...] = ()
    if token_id is not None:
        seq.token_ids.append(token_id)
        seq.output_counts[token_id] = seq.output_counts.get(token_id, 0) + 1
        if seq.mask is not None:
            seq.mask.push(token_id)
        if _ends_by_id(seq, token_id):
            seq.finish_reason = "stop"
        elif seq.text is not None:
            events = seq.text.push(token_id)
            if seq.text.stopped:
                seq.finish_reason = "stop"
    if seq.finish_reason is None and len(seq.token_ids) >= seq.max_len:
        seq.finish_reason = "length"
    if seq.is_finished and seq.text is not None:
        events += seq.text.flush()
        seq.finish_reason = "stop" if seq.text.stopped else seq.finish_reason
    first = seq.num_generated <= 1
    return Token(
        request_id=seq.request.request_id,
        index=seq.index,
        token_id=token_id,
        events=events,
        logprob=logprob,
        finish_reason=seq.finish_reason,
        prompt_logprobs=tuple(seq.prompt_logprobs) if first else (),
    )


def _ends_by_id(seq: Sequence, token_id: int) -> bool:
    if token_id in seq.sampling.stop_token_ids:
        return seq.num_generated >= seq.sampling.min_tokens
    is_eos = token_id in seq.eos_token_ids and not seq.sampling.ignore_eos
    return is_eos and seq.num_generated >= seq.sampling.min_tokens
