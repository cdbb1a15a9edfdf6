"""From logits to samples, the same for every runner: which rows are needed, and what they say."""

from __future__ import annotations

import math
from functools import partial
from itertools import islice

from torch import Tensor

from greenllm.core import Chunk, Sample
from greenllm.fence import fenced
from greenllm.runner.sampling import Draw, SamplingPosition, complaint, sample, token_logprobs


def wanted_rows(chunk: Chunk) -> range:
    """Rows of a chunk whose logits are needed: the last token's and its draft tokens'.

    All, when the prompt is scored.
    """
    if chunk.seq.sampling.prompt_logprobs is not None and chunk.start < chunk.seq.prompt_len:
        return range(chunk.num_tokens)
    first = chunk.num_tokens - 1 - len(chunk.draft)
    return range(first, chunk.num_tokens) if chunk.samples else range(0)


def packed_rows(chunks: list[Chunk], rows: list[range]) -> list[int]:
    """The wanted rows' places among all tokens of the step."""
    packed: list[int] = []
    begin = 0
    for chunk, wanted in zip(chunks, rows, strict=True):
        packed += [begin + row for row in wanted]
        begin += chunk.num_tokens
    return packed


def read_out(chunks: list[Chunk], rows: list[range], logits: Tensor) -> list[Sample]:
    """Score prompts, choose tokens, check drafts; logits `[wanted rows, vocabulary]`, float32."""
    places: list[SamplingPosition] = []
    counts: list[int] = []
    needed: list[int] = []
    prompts: list[Sample] = []
    end = 0
    for chunk, wanted in zip(chunks, rows, strict=True):
        begin, end = end, end + len(wanted)
        score = partial(_score_prompt, chunk, logits[begin:end])
        prompts.append(fenced(score, lambda error: Sample(error=error)))
        counts.append(1 + len(chunk.draft) if _draws(chunk) else 0)
        places += [SamplingPosition(chunk.seq, chunk.draft[:i]) for i in range(counts[-1])]
        needed += range(end - counts[-1], end)
    choices = iter(sample(logits if len(needed) == len(logits) else logits[needed], places))
    return [
        _checked(chunk, list(islice(choices, count)), prompt)
        for chunk, count, prompt in zip(chunks, counts, prompts, strict=True)
    ]


def _checked(chunk: Chunk, choices: list[Draw], scored: Sample) -> Sample:
    """The choices up to the first that rejects a draft token, inclusive; the others never were."""
    if scored.error:
        return scored
    prompt = scored.prompt
    taken: list[Draw] = []
    for choice, drafted in zip(choices, (*chunk.draft, None), strict=False):
        if choice.error and not taken:
            return Sample(prompt=prompt, error=choice.error)
        if choice.error:
            break
        taken.append(choice)
        if choice.token_id != drafted:
            break
    logprobs = tuple(choice.logprob for choice in taken if choice.logprob is not None)
    return Sample(tuple(choice.token_id for choice in taken), logprobs, prompt)


def _draws(chunk: Chunk) -> bool:
    """Whether a token is generated; with max_tokens 0 the prompt is only scored."""
    return chunk.samples and len(chunk.seq.token_ids) < chunk.seq.max_len


def _score_prompt(chunk: Chunk, logits: Tensor) -> Sample:
    """Log probabilities of the prompt tokens that the chunk's rows predict."""
    count = chunk.seq.sampling.prompt_logprobs
    last = min(chunk.end, chunk.seq.prompt_len - 1)
    if count is None or chunk.start >= last:
        return Sample()
    targets = chunk.seq.token_ids[chunk.start + 1 : last + 1]
    scores = token_logprobs(logits[: len(targets)], targets, [count] * len(targets))
    if not all(math.isfinite(score.logprob) for score in scores):
        return Sample(error=complaint(chunk.seq))
    return Sample(prompt=tuple(scores))
