"""From logits to samples, the same for every runner: which rows are needed, and what they say."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from greenllm.core import Chunk, Sample, TokenLogprob
from greenllm.decode.sampling import sample, token_logprobs


def wanted_rows(chunk: Chunk) -> range:
    """Rows of a chunk whose logits are needed: all when the prompt is scored, else the last."""
    if chunk.seq.sampling.prompt_logprobs is not None and chunk.start < chunk.seq.prompt_len:
        return range(chunk.num_tokens)
    return range(chunk.num_tokens - 1, chunk.num_tokens) if chunk.samples else range(0)


def packed_rows(chunks: list[Chunk], rows: list[range]) -> list[int]:
    """The wanted rows' places among all tokens of the step."""
    packed: list[int] = []
    begin = 0
    for chunk, wanted in zip(chunks, rows, strict=True):
        packed += [begin + row for row in wanted]
        begin += chunk.num_tokens
    return packed


def read_out(chunks: list[Chunk], rows: list[range], logits: Tensor) -> list[Sample]:
    """Score prompts and sample next tokens; logits `[wanted rows, vocabulary]`, float32."""
    ends: list[int] = []
    prompts: list[tuple[TokenLogprob, ...]] = []
    begin = 0
    for chunk, wanted in zip(chunks, rows, strict=True):
        ends.append(begin + len(wanted) - 1)
        prompts.append(_score_prompt(chunk, logits[begin : begin + len(wanted)]))
        begin += len(wanted)
    sampled = [i for i, chunk in enumerate(chunks) if _draws(chunk)]
    places = [ends[i] for i in sampled]
    drawn_from = logits if places == list(range(len(logits))) else logits[places]
    chosen = sample(drawn_from, [chunks[i].seq for i in sampled])
    results = [Sample(None, prompt=prompt) for prompt in prompts]
    for i, choice in zip(sampled, chosen, strict=True):
        results[i] = replace(choice, prompt=prompts[i]) if prompts[i] else choice
    return results


def _draws(chunk: Chunk) -> bool:
    """Whether a token is generated; with max_tokens 0 the prompt is only scored."""
    return chunk.samples and len(chunk.seq.token_ids) < chunk.seq.max_len


def _score_prompt(chunk: Chunk, logits: Tensor) -> tuple[TokenLogprob, ...]:
    """Log probabilities of the prompt tokens that the chunk's rows predict."""
    count = chunk.seq.sampling.prompt_logprobs
    last = min(chunk.end, chunk.seq.prompt_len - 1)
    if count is None or chunk.start >= last:
        return ()
    targets = chunk.seq.token_ids[chunk.start + 1 : last + 1]
    scores = token_logprobs(logits[: len(targets)], targets, [count] * len(targets))
    return tuple(scores)
