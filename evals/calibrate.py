"""How sure an exit has to be: `python -m evals.calibrate --model FOLDER`.

Half of the prompts calibrate. They are answered greedily by the engine; plain transformers reads
the answers again, cut off after the exit: how sure it is of its token at each place, and whether
that is the one in the answer. From these come the thresholds, see `calibration`. The first token of
an answer is never the exit's.

The other half tests. The engine answers it with each threshold, tokens leaving early for real, and
then scores these answers with the whole model: whether each token is the likeliest after those
before it. Beside that: how many layers a token took, and how many answers are the plain ones, and
right.

Prompts are held-out examples of the generated tasks, or pieces of a plain text. The result is
written as `NAME.json`. With `--keep all` the thresholds go into the model's config.json, with
`--keep higher` those that are higher than what is there from another text.

Not covered: sampled answers; thresholds for quantized weights of their own (the exit is read in
float32, but answers and the test are the server's); energy.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console

from evals.calibration import (
    AGREEMENTS,
    Position,
    Share,
    agreement_at,
    choose,
    markdown,
    with_thresholds,
)
from evals.engines import Bench, load_bench
from evals.entry import BenchError, finish, origin
from evals.tasks.generated.tasks import held_out_examples, task_names
from greenllm.core import Approximation, Request, SamplingParams, Token
from greenllm.energy.receipt import Receipt
from greenllm.engine.drafting import default_exit, trained_exits
from greenllm.engine.native import NativeEngine
from greenllm.model.loader import load_model
from greenllm.model.options import BUNDLED, LoadOptions, own_name, resolve
from greenllm.runner.early_exit import first_layers
from greenllm.tokenizer import Tokenizer

MODULE = "evals.calibrate"
console = Console(stderr=True)
SEED = 1
BATCH = 16
THREADS = 1
PIECE_TOKENS = 64
_PIECE_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the right answer where there is one."""

    token_ids: tuple[int, ...]
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class CalibrationAnswer:
    """What was said to a prompt."""

    prompt: Prompt
    token_ids: tuple[int, ...]
    has_stopped: bool
    mean_layers: float | None


def task_prompts(tokenizer: Tokenizer, count: int) -> list[Prompt]:
    """So many held-out examples, of all tasks alike, in random order."""
    names = task_names()
    each = -(-2 * count // len(names))  # some tasks have none
    found: list[Prompt] = []
    for name in names:
        for example in held_out_examples(name, each, SEED, exact=False):
            turns = [{"role": turn.role, "content": turn.content} for turn in example.prompt]
            ids = tuple(tokenizer.chat_ids(turns, add_generation_prompt=True))
            found.append(Prompt(ids, example.answer if example.exact else None))
    return random.Random(SEED).sample(found, min(count, len(found)))


def text_prompts(text: str, tokenizer: Tokenizer, count: int) -> list[Prompt]:
    """Beginnings for the model to go on from, in random order."""
    found = [Prompt(tuple(tokenizer.encode(piece)[:PIECE_TOKENS])) for piece in pieces(text, count)]
    return random.Random(SEED).sample(found, len(found))


def pieces(text: str, count: int) -> list[str]:
    """So many stretches of a text, evenly spaced, each from the beginning of a word."""
    found: list[str] = []
    for number in range(count):
        begin = len(text) * number // count
        if begin and not text[begin - 1].isspace():
            begin = next((i for i in range(begin, len(text)) if text[i].isspace()), len(text))
        if piece := text[begin:][:_PIECE_CHARACTERS].strip():
            found.append(piece)
    return found


def run(engine: NativeEngine, requests: Sequence[Request]) -> Iterator[tuple[list[Token], Receipt]]:
    """Tokens and receipt of each request; one that fails is a `BenchError`."""
    tokens: dict[str, list[Token]] = {request.request_id: [] for request in requests}
    receipts: list[Receipt] = []
    for request in requests:
        engine.check(request)
        engine.prepare(request)
        engine.add_request(request)
    while engine.has_work:
        for token in engine.step():
            tokens[token.request_id].append(token)
        receipts += engine.settle()
    receipts += engine.drain()
    by_id = {receipt.request_id: receipt for receipt in receipts}
    for name, sent in tokens.items():
        if sent[-1].finish_reason not in ("stop", "length"):
            raise BenchError(f"request {name} has failed: {sent[-1].error}")
        yield sent, by_id[name]


def answers(
    bench: Bench,
    prompts: Sequence[Prompt],
    max_tokens: int,
    approximation: Approximation | None = None,
) -> list[CalibrationAnswer]:
    """Greedy answers, as the server would give them."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    requests = [
        Request(str(i), (prompt.token_ids,), params, model="", approximation=approximation)
        for i, prompt in enumerate(prompts)
    ]
    engine = bench.engine(bench.account(), BATCH)
    return [
        CalibrationAnswer(
            prompt,
            tuple(token.token_id for token in tokens if token.token_id is not None),
            tokens[-1].finish_reason == "stop",
            receipt.mean_layers,
        )
        for prompt, (tokens, receipt) in zip(prompts, run(engine, requests), strict=True)
    ]


@torch.inference_mode()
def read_exit(model: Any, answer: CalibrationAnswer) -> list[Position]:
    """What the first layers would have said at each place of an answer."""
    prompt, said = answer.prompt.token_ids, answer.token_ids
    ids = torch.tensor([[*prompt, *said[:-1]]], device=model.device)
    best = model(ids).logits[0, len(prompt) :].float().softmax(-1).max(-1)
    pairs = zip(best.values.tolist(), best.indices.tolist(), said[1:], strict=True)
    return [Position(0.0, True), *(Position(value, best == token) for value, best, token in pairs)]


def find_positions(name: str, layer: int, found: Sequence[CalibrationAnswer]) -> list[Position]:
    """The exit's positions in all answers, read in float32."""
    loaded = load_model(name, LoadOptions(dtype="float32", device="cpu"))
    model = first_layers(loaded.model, layer, loaded.shape.num_layers)
    return [position for answer in found for position in read_exit(model, answer)]


def score(bench: Bench, found: Sequence[CalibrationAnswer]) -> Share:
    """How many tokens are the whole model's likeliest after those before them."""
    params = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=1)
    requests = [
        Request(str(i), ((*answer.prompt.token_ids, *answer.token_ids),), params, model="")
        for i, answer in enumerate(found)
    ]
    part = total = 0
    results = run(bench.engine(bench.account(), BATCH), requests)
    for answer, (tokens, _) in zip(found, results, strict=True):
        scores = tokens[0].prompt_logprobs[-len(answer.token_ids) :]
        part += sum(one is not None and one.token_id == one.top[0][0] for one in scores)
        total += len(scores)
    return Share(part, total)


def beside(
    bench: Bench, found: Sequence[CalibrationAnswer], plain: Sequence[CalibrationAnswer]
) -> dict[str, Any]:
    """What answers are like beside the plain ones."""
    num_layers = bench.runner.shape.num_layers
    tokens = sum(len(answer.token_ids) for answer in found)
    layers = sum((a.mean_layers or num_layers) * len(a.token_ids) for a in found)
    same = sum(a.token_ids == b.token_ids for a, b in zip(found, plain, strict=True))
    return {
        "measured": score(bench, found).summary(),
        "mean_layers": layers / tokens,
        "same_answers": Share(same, len(found)).summary(),
        "right": right(bench.tokenizer, found).summary(),
    }


def right(tokenizer: Tokenizer, found: Sequence[CalibrationAnswer]) -> Share:
    """Answers that are right to the letter, of those to which there is one right answer."""
    exact = [answer for answer in found if answer.prompt.answer is not None]
    told = [(answer, tokenizer.decode(answer.token_ids)) for answer in exact]
    part = sum(answer.has_stopped and text == answer.prompt.answer for answer, text in told)
    return Share(part, len(exact))


def find_prompts(bench: Bench, text: Path | None, count: int, max_tokens: int) -> list[Prompt]:
    """Prompts that leave room for an answer.

    Raises:
        BenchError: there are too few for two halves.
    """
    if text is None:
        found = task_prompts(bench.tokenizer, count)
    else:
        found = text_prompts(text.read_text(encoding="utf-8"), bench.tokenizer, count)
    room = bench.runner.info.context_length - max_tokens
    found = [prompt for prompt in found if len(prompt.token_ids) <= room]
    if len(found) < 2:
        raise BenchError(f"{len(found)} prompts of at most {room} tokens found: two are needed")
    return found


def calibrate(
    bench: Bench, model: str, layer: int, prompts: Sequence[Prompt], max_tokens: int
) -> Iterator[dict[str, Any]]:
    """Plain answers, and those with the threshold of each agreement."""
    positions = find_positions(model, layer, answers(bench, prompts[::2], max_tokens))
    plain = answers(bench, prompts[1::2], max_tokens)
    yield {"asked": None, "threshold": None, "calibrated": None, **beside(bench, plain, plain)}
    for asked in AGREEMENTS:
        row: dict[str, Any] = {"asked": asked, "threshold": choose(positions, asked)}
        if row["threshold"] is not None:
            approximation = Approximation(layer, row["threshold"], asked)
            found = answers(bench, prompts[1::2], max_tokens, approximation)
            row["calibrated"] = agreement_at(positions, row["threshold"]).summary()
            row |= beside(bench, found, plain)
        yield row


def write(
    model: str, layer: int, thresholds: dict[float, float], *, keep_higher: bool = False
) -> None:
    """Put thresholds into the model's config.json."""
    path = Path(resolve(model)) / "config.json"
    text = path.read_text(encoding="utf-8")
    new = with_thresholds(text, layer, thresholds, keep_higher=keep_higher)
    path.write_text(new, encoding="utf-8")


def main(
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = BUNDLED,
    exit_layer: Annotated[int, typer.Option(help="Layers; 0 takes the server's.")] = 0,
    runner: Annotated[str, typer.Option(help="Runner.")] = "auto",
    quantize: Annotated[str, typer.Option(help="none, int8, int4 or nf4.")] = "none",
    prompts: Annotated[int, typer.Option(help="Prompts, of which half calibrate.")] = 200,
    text: Annotated[
        Path | None, typer.Option(help="A plain text for prompts.", exists=True)
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer, at most.")] = 200,
    name: Annotated[str, typer.Option(help="The result's file, without .json.")] = "calibration",
    keep: Annotated[
        Literal["no", "all", "higher"],
        typer.Option(help="What of this to write into config.json: all, or what is higher there."),
    ] = "no",
) -> None:
    """Find thresholds for agreements, and test them."""
    if keep != "no" and not Path(resolve(model)).is_dir():
        raise BenchError(f"--keep {keep}: {model} is no folder")
    bench = load_bench(model, THREADS, runner=runner, quantize=quantize)
    layer = exit_layer or default_exit(trained_exits(model), bench.runner.shape.num_layers)
    found, rows = find_prompts(bench, text, prompts, max_tokens), []
    for row in calibrate(bench, model, layer, found, max_tokens):
        rows.append(row)
        console.print(f"agreement {row['asked'] or 'of plain answers'} done")
    about = {"model": own_name(model), "exit_layer": layer, "prompts": len(found)}
    result = json.dumps({**origin(MODULE), **about, "rows": rows}, indent=2)
    path = Path(f"{name}.json")
    path.write_text(result + "\n", encoding="utf-8")
    typer.echo(f"{markdown(rows)}written to {path}")
    if keep != "no":
        thresholds = {row["asked"]: row["threshold"] for row in rows if row["threshold"]}
        write(model, layer, thresholds, keep_higher=keep == "higher")


if __name__ == "__main__":
    finish(MODULE, lambda: typer.run(main))
