"""Do guesses change answers? `python -m evals.studies.exactness`; it exits with 1 if they do.

The same prompts go through the real engine in this process, 32 at a time, with every runner, every
method, and greedy as well as sampled with a seed. Each answer is compared with what the same runner
gives without guesses: ids, reason to end, log probabilities. Prompts are random ids, repetitions,
and questions in the chat format; filters, penalties, biases, ends and log probabilities are drawn
for each. In `mixed` the requests of a batch have different methods. In float32, unquantized.

A step that checks guesses is larger, and kernels may round it differently. Where an answer parts
from the plain one, plain transformers says what the logits were: if noise of +-`ROUNDING` on them
(greedy: a gap below 1e-3) brings forth both tokens it is a near-tie, and counted apart. A method
that never made a guess showed nothing, which is a failure too.

Not covered: quantized weights, adapters, the prefix cache, preemption, stop strings, HTTP.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from evals.engines import load_bench
from evals.entry import BenchError
from evals.studies import study
from evals.studies.speculation import KINDS
from evals.studies.speculation_prompts import prompts
from evals.tables import table, value
from greenllm.config import load
from greenllm.core import Request, SamplingParams, Speculation, Token, sequences_of
from greenllm.engine.drafting import make_drafting
from greenllm.engine.native import NativeEngine
from greenllm.model.loader import LoadedModel, load_model
from greenllm.model.options import BUNDLED, LoadOptions, own_name, resolve
from greenllm.options import EngineConfig
from greenllm.runner.sampling import SamplingPosition, sample
from greenllm.tokenizer import Tokenizer

RUNNERS = ("openvino", "torch")
WAYS = {"greedy": 0.0, "sampled": 0.8}
MIXED = "mixed"
BUNDLED_DRAFT = "bundled-draft"
BATCH = 32
ROUNDING = 5e-4
LOGPROB_TOLERANCE = 1e-4
_NEWCOMERS = 8
_TRIES = 256
_CASES = 5
_COUNTS = (4, 1, 7, 2, 5)
_USUAL = 4  # `auto` learns from no request that allows it fewer
Prompt = tuple[int, ...]
Answer = Sequence[Token]
Answers = Sequence[Answer]
Requests = Sequence[Request]
Row = dict[str, Any]


def random_prompts(count: int, vocabulary: int, seed: int) -> list[Prompt]:
    """Up to 40 random ids; in two thirds of the prompts some of them come back."""
    source = random.Random(f"prompts {seed}")
    return [_prompt(source, vocabulary) for _ in range(count)]


def _prompt(source: random.Random, vocabulary: int) -> Prompt:
    length, kind = source.randint(1, 40), source.randrange(3)
    ids = [source.randrange(vocabulary) for _ in range(length)]
    if kind == 1:
        ids = ids[: source.randint(1, 8)] * length
    elif kind == 2:
        ids = ids[: length // 2 + 1] + ids[length // 4 :]
    return tuple(ids[:length])


def chat_prompts(tokenizer: Tokenizer, count: int, seed: int) -> list[Prompt]:
    """Questions as a chat model gets them; none where there is no chat template."""
    if not tokenizer.has_chat_template:
        return []
    each = -(-count // len(KINDS))
    texts = [text for kind in KINDS for text in prompts(kind, each, seed)]
    turns = [[{"role": "user", "content": text}] for text in texts[:count]]
    return [tuple(tokenizer.chat_ids(turn, add_generation_prompt=True)) for turn in turns]


def random_sampling(
    source: random.Random, temperature: float, max_tokens: int, vocabulary: int
) -> SamplingParams:
    """Settings of which each is on in a third of the requests."""

    def at_times(value: Any, off: Any) -> Any:
        return value if source.random() < 1 / 3 else off

    some = source.sample(range(vocabulary), max(1, min(64, vocabulary // 8)))
    return SamplingParams(
        temperature=temperature,
        seed=source.randrange(2**31),
        top_p=at_times(source.choice((0.5, 0.8, 0.95)), 1.0),
        top_k=at_times(source.choice((2, 20, 300)), 0),
        min_p=at_times(source.choice((0.02, 0.2)), 0.0),
        presence_penalty=at_times(source.uniform(-1, 1), 0.0),
        frequency_penalty=at_times(source.uniform(-0.5, 1), 0.0),
        repetition_penalty=at_times(source.uniform(0.8, 1.5), 1.0),
        logit_bias=at_times({token_id: source.uniform(-3, 3) for token_id in some}, {}),
        stop_token_ids=at_times(tuple(some), ()),
        min_tokens=at_times(source.randint(1, max_tokens), 0),
        logprobs=at_times(source.randint(0, 5), None),
        max_tokens=max_tokens,
    )


def make_requests(
    prompts: Sequence[Prompt], way: str, max_tokens: int, vocabulary: int, seed: int
) -> list[Request]:
    """One request for each prompt, in random order, with settings of its own."""
    source, found = random.Random(f"{way} {seed}"), []
    for i, prompt in enumerate(source.sample(prompts, len(prompts))):
        how = random_sampling(source, WAYS[way], max_tokens, vocabulary)
        found.append(Request(f"{way}-{i}", (prompt,), how, model=""))
    return found


def with_method(requests: Requests, method: Any, methods: Sequence[Any]) -> list[Request]:
    """The requests with a method and a number of guesses; `mixed` takes all in turn, and none."""
    turns, found = ("off", *methods) if method == MIXED else (method,), []
    for i, request in enumerate(requests):
        chosen, count = turns[i % len(turns)], _COUNTS[i // len(turns) % len(_COUNTS)]
        how = Speculation(chosen, _USUAL if chosen == "auto" else count)
        found.append(replace(request, speculation=how))
    return found


def answer_all(engine: NativeEngine, requests: Requests) -> list[Answer]:
    """Answer 32 requests at a time, a few more at each step; one that fails is a `BenchError`."""
    tokens: dict[str, list[Token]] = {request.request_id: [] for request in requests}
    for start in range(0, len(requests), BATCH):
        pending = list(requests[start : start + BATCH])
        while pending or engine.has_work:
            for request in pending[:_NEWCOMERS]:
                engine.check(request)
                engine.prepare(request)
                engine.add_request(request)
            del pending[:_NEWCOMERS]
            for token in engine.step():
                tokens[token.request_id].append(token)
        engine.settle()
    for name, answer in tokens.items():
        if answer[-1].finish_reason not in ("stop", "length"):
            raise BenchError(f"request {name} has failed: {answer[-1].error}")
    return list(tokens.values())


def parting(plain: Answer, other: Answer) -> int | None:
    """The first place where answers differ, the end of one of them included."""
    ids = ([token.token_id for token in answer] for answer in (plain, other))
    return next((place for place, (a, b) in enumerate(zip_longest(*ids)) if a != b), None)


def logprob_gap(plain: Answer, other: Answer) -> float:
    """Largest distance of log probabilities before answers part; infinite where one has none."""
    pairs = list(zip(plain, other, strict=False))[: parting(plain, other)]
    both = [zip_longest(_logprobs(a), _logprobs(b), fillvalue=math.inf) for a, b in pairs]
    return max((abs(x - y) for numbers in both for x, y in numbers), default=0.0)


def _logprobs(token: Token) -> list[float]:
    found = token.logprob
    return [] if found is None else [found.logprob, *(value for _, value in found.top)]


def is_near_tie(request: Request, plain: Answer, other: Answer, reference: LoadedModel) -> bool:
    """Whether rounding alone can bring forth both tokens where the answers part."""
    place = parting(plain, other)
    if place is None or place >= min(len(plain), len(other)):
        return False
    ends, before = reference.info.eos_token_ids, [token.token_id or 0 for token in plain[:place]]
    (seq,) = sequences_of(request, eos_token_ids=ends, max_len=sys.maxsize)
    seq.token_ids += before
    seq.output_counts = dict(Counter(before))
    with torch.no_grad():
        logits = reference.model(torch.tensor([seq.token_ids])).logits[0, -1]
    noise = torch.rand(_TRIES, len(logits), generator=torch.Generator().manual_seed(1)) * 2 - 1
    choices = sample(logits + ROUNDING * noise, [SamplingPosition(seq)] * _TRIES)
    return {plain[place].token_id, other[place].token_id} <= {found.token_id for found in choices}


def verdict(request: Request, plain: Answer, other: Answer, reference: LoadedModel) -> str:
    """`same`, `near_ties` or `different`: where the answer counts."""
    if logprob_gap(plain, other) > LOGPROB_TOLERANCE:
        return "different"
    if parting(plain, other) is None and plain[-1].finish_reason == other[-1].finish_reason:
        return "same"
    return "near_ties" if is_near_tie(request, plain, other, reference) else "different"


def compare(asked: Requests, plain: Answers, others: Answers, reference: LoadedModel) -> Row:
    """Count answers by verdict; `cases` names the first that are not the plain ones."""
    found = list(zip(asked, plain, others, strict=True))
    kinds = [verdict(*three, reference) for three in found]
    cases = [
        f"{kind}: {request.request_id} from token {parting(one, other)} on"
        for kind, (request, one, other) in zip(kinds, found, strict=True)
        if kind != "same"
    ]
    return {
        **{kind: kinds.count(kind) for kind in ("same", "near_ties", "different")},
        "largest_logprob_gap": float(f"{max(logprob_gap(*pair) for _, *pair in found):.1e}"),
        "cases": cases[:_CASES],
    }


def check_way(
    engine: NativeEngine, asked: Requests, methods: Sequence[str], reference: LoadedModel
) -> Iterator[Row]:
    """Each method beside plain decoding of the same requests, and all of them in one batch."""
    plain = answer_all(engine, with_method(asked, "off", methods))
    for method in (*methods, MIXED):
        before = engine.stats()
        found = answer_all(engine, with_method(asked, method, methods))
        after = engine.stats()
        yield {
            "method": method,
            "prompts": len(asked),
            "tokens": after.completion_tokens - before.completion_tokens,
            "drafted": after.drafted_tokens - before.drafted_tokens,
            "accepted": after.accepted_tokens - before.accepted_tokens,
            **compare(asked, plain, found, reference),
        }


def check_runner(
    flags: Mapping[str, str], prompts: int, max_tokens: int, seed: int, reference: LoadedModel
) -> Iterator[Row]:
    """Every way and method on the runner that the options name."""
    bench = load_bench(threads=1, **flags)
    speculator = make_drafting(load(EngineConfig, flags=flags), bench.runner).speculator
    engine = bench.engine(bench.account(), BATCH, speculator)
    vocabulary = bench.runner.info.vocab_size
    chats = chat_prompts(bench.tokenizer, prompts // 4, seed)
    texts = chats + random_prompts(prompts - len(chats), vocabulary, seed)
    for way in WAYS:
        asked = make_requests(texts, way, max_tokens, vocabulary, seed)
        for row in check_way(engine, asked, [*speculator.drafters, "auto"], reference):
            yield {"runner": flags["runner"], "way": way, **row}


def holds(row: Row) -> bool:
    """Whether guesses were made and changed nothing."""
    return bool(row["different"] == 0 < row["drafted"])


def page(result: study.Result) -> str:
    """The rows, without their cases."""
    names = [name for name in result["rows"][0] if name != "cases"]
    columns = {name.replace("_", " "): value(name) for name in names}
    return table(columns, result["rows"]) + "\n"


STUDY = study.Study("exactness", page)


def main(
    model: study.Model = BUNDLED,
    draft_model: Annotated[str, typer.Option(help="Draft model; else the bundled one's.")] = "",
    prompts: Annotated[int, typer.Option(help="Prompts for each method and way.")] = 1000,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer, at most.")] = 24,
    seed: Annotated[int, typer.Option(help="Other prompts and settings.")] = 1,
    runners: Annotated[str, typer.Option(help="Runners.")] = ",".join(RUNNERS),
    name: study.Name = STUDY.name,
) -> None:
    """Compare answers with and without guesses."""
    has_own = model == BUNDLED and Path(resolve(BUNDLED_DRAFT)).is_dir()
    flags = {"model": model, "dtype": "float32", "device": "cpu"}
    if draft := draft_model or BUNDLED_DRAFT * has_own:
        flags["draft_model"] = draft
    reference, rows = load_model(model, LoadOptions(dtype="float32", device="cpu")), []
    for runner in study.pick(study.split_names(runners), RUNNERS, "--runners: no such runner:"):
        for row in check_runner({**flags, "runner": runner}, prompts, max_tokens, seed, reference):
            rows.append(row)
            study.console.print(", ".join(f"{key} {value}" for key, value in row.items()))
    about = {"model": own_name(model), "draft_model": own_name(draft) if draft else None}
    STUDY.report({**about, "rows": rows}, name)
    raise typer.Exit(0 if all(map(holds, rows)) else 1)


if __name__ == "__main__":
    STUDY.run(main)
