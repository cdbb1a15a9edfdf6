"""From logits to tokens: penalties, filters, one draw per row, log probabilities.

Each row is independent of the others in its batch: its draw is one uniform number derived from
(seed, position), turned into a token by the inverse of the filtered distribution's cumulative sum.
The order of operations is the usual one: bias, forbidden ends (min_tokens), the grammar's mask,
penalties, temperature, min_p, top_k, top_p. Reported log probabilities are of the raw logits.

What goes wrong in one row is an error of that row, not a token: logits that are not finite, before
or after they were adjusted, and whatever is raised. Every other row has a token of the vocabulary.
Not covered: beams; making masks of grammars.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from greenllm.core import SamplingParams, Sequence, TokenLogprob
from greenllm.fence import fenced

# How many of the best tokens are looked at first when a filter is on.
FEW = 256


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class SamplingPosition:
    """Where a token is chosen: after a sequence's tokens and the draft tokens `ahead` of it."""

    seq: Sequence
    ahead: tuple[int, ...] = ()

    @property
    def sampling(self) -> SamplingParams:
        """The sequence's sampling parameters."""
        return self.seq.sampling

    @property
    def position(self) -> int:
        """Tokens before it."""
        return len(self.seq.token_ids) + len(self.ahead)

    @property
    def is_too_early(self) -> bool:
        """Whether the sequence must not end here."""
        return self.seq.num_generated + len(self.ahead) < self.sampling.min_tokens

    @property
    def is_adjusted(self) -> bool:
        """Whether its logits are not taken as they are."""
        return self.sampling.has_penalties or self.is_too_early or self.seq.mask is not None

    @property
    def output_counts(self) -> Mapping[int, int]:
        """How often each token was generated before it."""
        if not self.ahead:
            return self.seq.output_counts
        return Counter(self.seq.output_counts) + Counter(self.ahead)


@dataclass(frozen=True, slots=True)
class Draw:
    """A chosen token and its log probability where asked for; or `error`."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str = ""


def sample(logits: Tensor, rows: list[SamplingPosition]) -> list[Draw]:
    """Choose the next token of each row; logits `[rows, vocabulary]`, float32.

    A row whose largest logit is not a finite number gets an error in its place.
    """
    if not rows:
        return []
    adjusted, errors = _adjust(logits, rows)
    best = _best(adjusted)
    largest = adjusted.gather(1, best[:, None])
    # The largest tells of a NaN, an infinity or a row without any chance, without another pass.
    for i, is_sound in enumerate(torch.isfinite(largest)[:, 0].tolist()):
        if not is_sound and i not in errors:
            errors[i] = complaint(rows[i].seq)
    chosen: list[int] = best.tolist()
    drawn = [i for i, row in enumerate(rows) if i not in errors and not row.sampling.is_greedy]
    if drawn:
        # At most 0, so that no temperature takes them out of float32's range.
        below = adjusted[drawn].sub_(largest[drawn])
        for i, token_id in zip(drawn, _draw(below, [rows[i] for i in drawn]), strict=True):
            chosen[i] = token_id
    choices = [
        Draw(token_id, error=errors.get(i, "")) if 0 <= token_id < logits.shape[-1] else _outside
        for i, token_id in enumerate(chosen)
    ]
    _report(choices, logits, rows)
    return choices


_outside = Draw(0, error="no token of the vocabulary was chosen")


def _report(choices: list[Draw], logits: Tensor, rows: list[SamplingPosition]) -> None:
    """Add log probabilities where they are asked for."""
    wanted = [
        i
        for i, choice in enumerate(choices)
        if not choice.error and rows[i].sampling.logprobs is not None
    ]
    if not wanted:
        return
    counts = [rows[i].sampling.logprobs or 0 for i in wanted]
    reports = token_logprobs(logits[wanted], [choices[i].token_id for i in wanted], counts)
    for i, report in zip(wanted, reports, strict=True):
        error = "" if math.isfinite(report.logprob) else complaint(rows[i].seq)
        choices[i] = Draw(report.token_id, report, error)


def complaint(seq: Sequence) -> str:
    """What is said to a request whose logits are not numbers."""
    adapter = seq.request.adapter_name
    source = "the model" if adapter is None else f"the model with adapter {adapter!r}"
    return f"{source} returned logits that are not finite"


def _best(logits: Tensor) -> Tensor:
    """The first largest of each row; a NaN counts as larger than anything.

    On CPUs numpy's vectorized search is ten times as fast as torch's.
    """
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)
    return torch.from_numpy(logits.numpy().argmax(axis=-1))


def token_logprobs(logits: Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprob]:
    """Log probabilities of given tokens and of the `counts[i]` most probable ones of each row.

    Tokens that cannot come are not among the most probable ones.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    index = torch.tensor(token_ids, device=logits.device)
    chosen: list[float] = logprobs.gather(1, index[:, None])[:, 0].tolist()
    top = torch.topk(logprobs, min(max(counts), logits.shape[-1]), dim=-1)
    best = zip(top.indices.tolist(), top.values.tolist(), counts, strict=True)
    tops = [tuple(zip(ids[:count], values[:count], strict=True)) for ids, values, count in best]
    return [
        TokenLogprob(token, value, tuple(pair for pair in top if pair[1] > -math.inf))
        for token, value, top in zip(token_ids, chosen, tops, strict=True)
    ]


def _adjust(logits: Tensor, rows: list[SamplingPosition]) -> tuple[Tensor, dict[int, str]]:
    """Apply bias, penalties and what is forbidden, with the errors of rows; the input stays."""
    touched = [i for i, row in enumerate(rows) if row.is_adjusted]
    if not touched:
        return logits, {}
    adjusted = logits.clone()
    found = {i: fenced(partial(_adjust_row, adjusted[i], rows[i]), str) for i in touched}
    return adjusted, {i: error for i, error in found.items() if error is not None}


def _adjust_row(logits: Tensor, place: SamplingPosition) -> None:
    seq, params = place.seq, place.sampling
    if params.logit_bias:
        bias = params.logit_bias
        logits[_index(bias, logits)] += _numbers(bias.values(), logits)
    if place.is_too_early:
        logits[list(seq.eos_token_ids | set(params.stop_token_ids))] = -math.inf
    if seq.mask is not None:
        allowed = torch.frombuffer(seq.mask.allowed(place.ahead), dtype=torch.bool)
        logits.masked_fill_(~allowed.to(logits.device), -math.inf)
    if params.repetition_penalty != 1:
        # Those that came more than once are set to the same value as often.
        seen = _index([*seq.token_ids, *place.ahead], logits)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    counts = place.output_counts
    if counts and (params.presence_penalty or params.frequency_penalty):
        times = _numbers(counts.values(), logits)
        logits[_index(counts, logits)] -= params.presence_penalty + params.frequency_penalty * times


def _index(token_ids: Iterable[int], logits: Tensor) -> Tensor:
    """Ids as an index; a list, which may be as long as the context, would be read one by one."""
    return torch.frombuffer(array("q", token_ids), dtype=torch.int64).to(logits.device)


def _numbers(values: Iterable[float], logits: Tensor) -> Tensor:
    """Numbers beside logits, likewise."""
    return torch.frombuffer(array("f", values), dtype=torch.float32).to(logits)


def _draw(logits: Tensor, rows: list[SamplingPosition]) -> list[int]:
    """Draw one token per row from its filtered distribution; each row's largest logit is 0."""
    params = [row.sampling for row in rows]
    temperature = logits.new_tensor([p.temperature for p in params])[:, None]
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    draws = [uniform(row.seq.seed, row.position) for row in rows]
    whole = [i for i, p in enumerate(params) if not _filters(p)]
    chosen = dict(zip(whole, _pick(logprobs[whole].exp(), [draws[i] for i in whole]), strict=True))
    rest = [i for i in range(len(rows)) if i not in chosen]
    # Most filters keep a few tokens: look at the best ones, and at all only where these may not do.
    for size in (min(FEW, logits.shape[-1]), logits.shape[-1]):
        if not rest:
            break
        top = torch.topk(logprobs[rest], size, dim=-1)
        kept, complete = _filter(top.values.exp(), [params[i] for i in rest], logits.shape[-1])
        places = _pick(kept, [draws[i] for i in rest])
        ids = top.indices.gather(1, torch.tensor(places, device=logits.device)[:, None])[:, 0]
        found = zip(rest, ids.tolist(), complete.tolist(), strict=True)
        chosen |= {i: token_id for i, token_id, is_complete in found if is_complete}
        rest = [i for i in rest if i not in chosen]
    return [chosen[i] for i in range(len(rows))]


def _filters(params: SamplingParams) -> bool:
    return params.min_p > 0 or params.top_k > 0 or params.top_p < 1


def _pick(probs: Tensor, draws: list[float]) -> list[int]:
    """Invert each row's cumulative sum at its draw; rows need not add up to one."""
    if not draws:
        return []
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    targets = cumulative.new_tensor(draws)[:, None] * cumulative[:, -1:]
    picks = torch.searchsorted(cumulative, targets, right=True)
    # Where rounding takes the target to the end of the sum: the last token that has a chance.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    found: list[int] = torch.minimum(picks, last)[:, 0].tolist()
    return found


def _filter(probs: Tensor, params: list[SamplingParams], vocabulary: int) -> tuple[Tensor, Tensor]:
    """Zero what min_p, top_k and top_p exclude; the best probabilities, in descending order.

    Also tells for each row whether everything that it keeps is among them.
    """
    size = probs.shape[-1]
    ranks = torch.arange(size, device=probs.device)[None]
    top_k = torch.tensor([[p.top_k or vocabulary] for p in params], device=probs.device)
    min_p = probs.new_tensor([[p.min_p] for p in params])
    keep = (ranks < top_k) & (probs >= min_p * probs[:, :1])  # always the first
    is_bounded = ~keep[:, -1:] | (size == vocabulary) | (top_k == size)
    probs = probs * keep
    mass = torch.where(is_bounded, probs.sum(dim=-1, keepdim=True), torch.ones_like(min_p))
    top_p = probs.new_tensor([[p.top_p if p.top_p < 1 else 2.0] for p in params])
    before = probs.cumsum(dim=-1) - probs
    within = (before < top_p * mass) | (ranks == 0)
    complete = is_bounded[:, 0] | (
        ~within[:, -1] & (top_k[:, 0] >= vocabulary) & (min_p[:, 0] == 0)
    )
    return probs * within, complete
