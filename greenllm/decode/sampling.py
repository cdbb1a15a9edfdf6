"""From logits to tokens: penalties, filters, one draw per row, log probabilities.

Each row is independent of the others in its batch: its draw is one uniform number derived from
(seed, position), turned into a token by the inverse of the filtered distribution's cumulative sum.
The order of operations is the usual one: bias, forbidden ends (min_tokens), penalties,
temperature, min_p, top_k, top_p. Reported log probabilities are of the raw logits.

Not covered: beams, structured output. Logits that are not finite are an error, not a token.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from greenllm.core import Sample, SamplingParams, Sequence, TokenLogprob


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def sample(logits: Tensor, rows: list[Sequence]) -> list[Sample]:
    """Choose the next token of each row; logits `[rows, vocabulary]`, float32."""
    if not rows:
        return []
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("the model returned logits that are not finite")
    adjusted = _adjust(logits, rows)
    token_ids = adjusted.argmax(dim=-1)
    drawn = [i for i, seq in enumerate(rows) if not seq.sampling.is_greedy]
    if drawn:
        token_ids[drawn] = _draw(adjusted[drawn], [rows[i] for i in drawn])
    chosen: list[int] = token_ids.tolist()
    wanted = [i for i, seq in enumerate(rows) if seq.sampling.logprobs is not None]
    samples = [Sample(token_id) for token_id in chosen]
    if wanted:
        counts = [rows[i].sampling.logprobs or 0 for i in wanted]
        reports = token_logprobs(logits[wanted], [chosen[i] for i in wanted], counts)
        for i, report in zip(wanted, reports, strict=True):
            samples[i] = Sample(chosen[i], report)
    return samples


def token_logprobs(logits: Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprob]:
    """Log probabilities of given tokens and of the `counts[i]` most probable ones of each row."""
    logprobs = torch.log_softmax(logits, dim=-1)
    index = torch.tensor(token_ids, device=logits.device)
    chosen: list[float] = logprobs.gather(1, index[:, None])[:, 0].tolist()
    top = torch.topk(logprobs, min(max(counts), logits.shape[-1]), dim=-1)
    values, ids = top.values.tolist(), top.indices.tolist()
    return [
        TokenLogprob(token, value, tuple(zip(ids[i][:count], values[i][:count], strict=True)))
        for i, (token, value, count) in enumerate(zip(token_ids, chosen, counts, strict=True))
    ]


def _adjust(logits: Tensor, rows: list[Sequence]) -> Tensor:
    """Apply bias, penalties and forbidden ends; the input is left alone."""
    touched = [i for i, seq in enumerate(rows) if seq.sampling.has_penalties or _too_early(seq)]
    if not touched:
        return logits
    adjusted = logits.clone()
    for i in touched:
        _adjust_row(adjusted[i], rows[i])
    return adjusted


def _adjust_row(row: Tensor, seq: Sequence) -> None:
    params = seq.sampling
    if params.logit_bias:
        row[list(params.logit_bias)] += row.new_tensor(list(params.logit_bias.values()))
    if _too_early(seq):
        row[list(seq.eos_token_ids | set(params.stop_token_ids))] = -math.inf
    if params.repetition_penalty != 1:
        seen = list(set(seq.token_ids))
        values = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if seq.output_counts and (params.presence_penalty or params.frequency_penalty):
        counts = row.new_tensor(list(seq.output_counts.values()))
        cost = params.presence_penalty + params.frequency_penalty * counts
        row[list(seq.output_counts)] -= cost


def _too_early(seq: Sequence) -> bool:
    return seq.num_generated < seq.sampling.min_tokens


def _draw(logits: Tensor, rows: list[Sequence]) -> Tensor:
    """Draw one token per row from its filtered distribution."""
    params = [seq.sampling for seq in rows]
    temperature = logits.new_tensor([p.temperature for p in params])[:, None]
    probs = torch.softmax(logits / temperature, dim=-1)
    probs, ids = probs.sort(dim=-1, descending=True, stable=True)
    probs = _filter(probs, params)
    cumulative = probs.cumsum(dim=-1)
    draws = [uniform(seq.seed, len(seq.token_ids)) for seq in rows]
    targets = logits.new_tensor(draws)[:, None] * cumulative[:, -1:]
    picks = torch.searchsorted(cumulative, targets, right=True)
    last = ((probs > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    return ids.gather(1, torch.minimum(picks, last))[:, 0]


def _filter(probs: Tensor, params: list[SamplingParams]) -> Tensor:
    """Zero what min_p, top_k and top_p exclude; probabilities sorted in descending order."""
    if all(p.min_p == 0 and p.top_k == 0 and p.top_p == 1 for p in params):
        return probs
    size = probs.shape[-1]
    ranks = torch.arange(size, device=probs.device)[None]
    top_k = torch.tensor([[p.top_k or size] for p in params], device=probs.device)
    min_p = probs.new_tensor([[p.min_p] for p in params])
    keep = (ranks < top_k) & (probs >= min_p * probs[:, :1])  # always the first
    probs = probs * keep
    top_p = probs.new_tensor([[p.top_p if p.top_p < 1 else 2.0] for p in params])
    before = probs.cumsum(dim=-1) - probs
    within = before < top_p * probs.sum(dim=-1, keepdim=True)
    return probs * (within | (ranks == 0))
