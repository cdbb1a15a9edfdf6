"""Answers that leave the model early: each token is the exit's or the model's, as it should be.

Both runners, in float32, through the scheduler as in the engine. What is expected comes from plain
transformers, which reads every answer again in one pass, whole and cut off after its first layers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evals import calibrate
from evals.engines import load_bench
from greenllm.config import load
from greenllm.core import (
    Approximation,
    Request,
    SamplingParams,
    Sequence,
    Speculation,
    SpeculativeMethod,
    sequences_of,
)
from greenllm.energy.receipt import Receipt
from greenllm.engine.blocks import BlockManager
from greenllm.engine.drafting import make_drafting
from greenllm.engine.native import NativeEngine
from greenllm.engine.scheduler import Scheduler
from greenllm.exits import EXIT_RUN, MOST_PENDING
from greenllm.model.info import LoadError
from greenllm.model.options import LoadOptions
from greenllm.options import EngineConfig
from greenllm.runner.early_exit import first_layers
from greenllm.runner.openvino.load import KvCacheOptions, load_openvino_runner
from greenllm.runner.threads import ThreadPlan
from greenllm.runner.torch import load_torch_runner
from greenllm.shape import ModelShape
from greenllm.speculation.speculator import PromptLookup, Speculator
from tests.model.driving import LLAMA, VOCABULARY, drive, random_prompts, save, scheduler_of

LAYERS, EXIT = 6, 3
ALWAYS, AT_TIMES, NEVER = 0.000001, 0.3, 0.999999
METHODS: tuple[SpeculativeMethod, ...] = ("early_exit", "prompt_lookup")
CONFIG = LLAMA | {
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
WAYS: dict[str, SamplingParams] = {
    "several at a time": SamplingParams(temperature=0, max_tokens=60),
    "one at a time": SamplingParams(temperature=0, max_tokens=60, logprobs=0),
    "sampled": SamplingParams(temperature=0.9, seed=3, top_p=0.95, max_tokens=60),
    "penalties": SamplingParams(temperature=0, presence_penalty=0.7, max_tokens=60),
}
GREEDY = {name: WAYS[name] for name in ("several at a time", "one at a time")}
Tokens = list[list[int]]


def _openvino(folder: str, options: LoadOptions | None = None, **caches: Any) -> Any:
    return load_openvino_runner(
        folder, options or LoadOptions(), KvCacheOptions(2**25, 8, **caches)
    )


def _torch(folder: str) -> Any:
    options = LoadOptions(device="cpu")
    return load_torch_runner(folder, options, block_size=8, kv_cache_bytes=2**25, max_num_seqs=8)


RUNNERS: dict[str, Callable[..., Any]] = {"openvino": _openvino, "torch": _torch}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model whose exit is sure of about half of its tokens at `AT_TIMES`."""
    return save(transformers.LlamaConfig(**CONFIG), tmp_path_factory.mktemp("six"))


@pytest.fixture(scope="module")
def runners(folder: str) -> dict[str, Any]:
    found = {name: load(folder) for name, load in RUNNERS.items()}
    for runner in found.values():
        runner.prepare_exit(EXIT)
    return found


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request: pytest.FixtureRequest, runners: dict[str, Any]) -> Any:
    return runners[request.param]


class Reference:
    """What the whole model and its first layers say to a text, by plain transformers."""

    def __init__(self, folder: str) -> None:
        self._whole = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self._first = first_layers(self._whole, EXIT, LAYERS)

    @torch.inference_mode()
    def read(self, seq: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities of all tokens at each place of an answer: whole, and at the exit."""
        ids, start = torch.tensor([seq.token_ids]), seq.prompt_len - 1
        whole, first = (model(ids).logits[0, start:-1] for model in (self._whole, self._first))
        return whole.log_softmax(-1), first.log_softmax(-1)

    def follow(self, seq: Sequence, threshold: float) -> tuple[list[int], list[bool]]:
        """Each token of an answer as it should be after those before it, and if the exit chose."""
        whole, first = self.read(seq)
        best, early = whole.argmax(-1).tolist(), first.argmax(-1).tolist()
        sure = (first.amax(-1).exp() > threshold).tolist()
        tokens, exited, waiting = [], [], 0
        for place in range(len(best)):
            exited.append(place > 0 and sure[place] and waiting < MOST_PENDING)
            waiting = waiting + 1 if exited[-1] else 0
            tokens.append(early[place] if exited[-1] else best[place])
        return tokens, exited


@pytest.fixture(scope="module")
def reference(folder: str) -> Reference:
    return Reference(folder)


def _ask(
    runner: Any,
    prompts: SequenceOf[SequenceOf[int]],
    params: SamplingParams,
    threshold: float | None = None,
    speculation: Speculation | None = None,
) -> list[Sequence]:
    """One sequence for each prompt; with a threshold it may leave early."""
    sequences: list[Sequence] = []
    for i, prompt in enumerate(prompts):
        approximation = None if threshold is None else Approximation(EXIT, threshold)
        request = Request(
            f"{threshold}-{i}",
            (tuple(prompt),),
            params,
            model="",
            approximation=approximation,
            speculation=speculation,
        )
        longest = runner.info.context_length
        sequences += sequences_of(request, eos_token_ids=frozenset(), max_len=longest)
    return sequences


def _answers(sequences: SequenceOf[Sequence]) -> Tokens:
    return [seq.token_ids[seq.prompt_len :] for seq in sequences]


def _exited(sequences: SequenceOf[Sequence]) -> list[int]:
    return [0 if seq.exit is None else seq.exit.num_exited for seq in sequences]


LENGTHS = (31, 40, 2, 33, 64, 17)


@pytest.fixture(scope="module")
def prompts() -> Tokens:
    return random_prompts(VOCABULARY, LENGTHS, seed=4)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_an_exit_that_is_never_sure_changes_no_token(
    runner: Any, prompts: Tokens, way: SamplingParams
) -> None:
    plain, early = _ask(runner, prompts, way), _ask(runner, prompts, way, NEVER)
    drive(runner, plain)
    drive(runner, early, stagger=2)
    assert _answers(early) == _answers(plain)
    assert _exited(early) == [0] * len(prompts)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_an_exit_that_is_always_sure_asks_the_model_now_and_then(
    runner: Any, prompts: Tokens, way: SamplingParams
) -> None:
    early = _ask(runner, prompts, way, ALWAYS)
    drive(runner, early)
    cycles, rest = divmod(way.max_tokens, MOST_PENDING + 1)
    assert _exited(early) == [cycles * MOST_PENDING + max(0, rest - 1)] * len(prompts)


@pytest.mark.parametrize("threshold", [ALWAYS, AT_TIMES, NEVER])
@pytest.mark.parametrize("way", GREEDY.values(), ids=GREEDY.keys())
def test_tokens_are_the_exits_where_it_is_sure_and_the_models_elsewhere(
    runner: Any, reference: Reference, prompts: Tokens, way: SamplingParams, threshold: float
) -> None:
    early = _ask(runner, prompts, way, threshold)
    drive(runner, early, stagger=3)
    for seq, answer in zip(early, _answers(early), strict=True):
        tokens, exited = reference.follow(seq, threshold)
        assert answer == tokens
        assert _exited([seq]) == [sum(exited)]
        if threshold == AT_TIMES:
            assert 0.2 < sum(exited) / len(exited) < 0.8


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_how_many_leave_at_a_time_changes_no_token(
    runner: Any, prompts: Tokens, way: SamplingParams
) -> None:
    together, one_by_one = (_ask(runner, prompts, way, AT_TIMES) for _ in range(2))
    drive(runner, together)
    bare = BlockManager(runner.num_blocks, runner.block_size)
    clock = time.monotonic
    scheduler = Scheduler(bare, max_num_seqs=8, max_batch_tokens=512, clock=clock)
    drive(runner, one_by_one, scheduler=scheduler)
    assert _answers(together) == _answers(one_by_one)
    assert _exited(together) == _exited(one_by_one)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("threshold", [ALWAYS, AT_TIMES])
def test_runners_agree(
    runners: dict[str, Any], prompts: Tokens, way: SamplingParams, threshold: float
) -> None:
    found = []
    for runner in runners.values():
        found.append(_ask(runner, prompts, way, threshold))
        drive(runner, found[-1])
    one, other = found
    assert _answers(one) == _answers(other)
    assert _exited(one) == _exited(other)


@pytest.mark.parametrize("threshold", [ALWAYS, AT_TIMES])
def test_log_probabilities_are_those_of_who_chose(
    runner: Any, reference: Reference, prompts: Tokens, threshold: float
) -> None:
    (seq,) = _ask(runner, prompts[:1], GREEDY["one at a time"], threshold)
    scheduler = scheduler_of(runner, Speculator({}))
    scheduler.add(seq)
    found: list[float] = []
    while scheduler.has_work:
        batch = scheduler.schedule()
        tokens = scheduler.commit(batch, runner.run(batch))
        found += [token.logprob.logprob for token in tokens if token.logprob is not None]
    _, exited = reference.follow(seq, threshold)
    whole, first = (scores.amax(-1).tolist() for scores in reference.read(seq))
    expected = [a if left else b for a, b, left in zip(first, whole, exited, strict=True)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_company_changes_no_answer(runner: Any, reference: Reference) -> None:
    """Plain, guessed and approximate answers in the same steps, beside prompts in parts."""
    drafter = runner.early_exit(2)
    drafter.prepare(3)
    speculator = Speculator({"early_exit": drafter, "prompt_lookup": PromptLookup()})
    kinds: list[dict[str, Any]] = [
        {},
        {"threshold": ALWAYS},
        *({"speculation": Speculation(method, 3)} for method in METHODS),
        {"threshold": AT_TIMES},
        {"threshold": NEVER},
    ]
    texts = random_prompts(VOCABULARY, (9, 30, 4, 70, 50, 45, 20, 33, 41, 8, 12, 25), seed=2)
    pairs = list(zip(texts, kinds * 2, strict=True))
    way = WAYS["sampled"]
    mixed = [_ask(runner, [text], way, **how)[0] for text, how in pairs]
    scheduler = scheduler_of(runner, speculator, max_batch_tokens=90)
    drive(runner, mixed, speculator, scheduler, stagger=2)
    alone = [_ask(runner, [text], way, **_alone(how))[0] for text, how in pairs]
    for seq in alone:
        drive(runner, [seq], speculator)
    assert _answers(mixed) == _answers(alone)
    left = [num_exited > 0 for num_exited in _exited(mixed)]
    assert left == [how.get("threshold", NEVER) != NEVER for _, how in pairs]
    assert any(seq.num_accepted for seq in mixed)


def _alone(how: dict[str, Any]) -> dict[str, Any]:
    """How an answer is made by itself: guesses, and an exit that is never sure, change nothing."""
    threshold = how.get("threshold", NEVER)
    return {} if threshold == NEVER else {"threshold": threshold}


@pytest.mark.parametrize("way", GREEDY.values(), ids=GREEDY.keys())
@pytest.mark.parametrize("num_tokens", [35, 60, 90])
def test_what_left_early_is_not_in_the_prefix_cache(
    runner: Any, prompts: Tokens, way: SamplingParams, num_tokens: int
) -> None:
    """A plain request goes on from the approximate answer as if nobody had been there."""
    how = SamplingParams(temperature=0, max_tokens=num_tokens, logprobs=way.logprobs)
    speculator = Speculator({})
    scheduler = scheduler_of(runner, speculator)
    early = _ask(runner, prompts[:3], how, ALWAYS)
    drive(runner, early, speculator, scheduler)
    assert all(_exited(early))
    texts = [[*seq.token_ids, 7] for seq in early]
    warm, cold = (_ask(runner, texts, SamplingParams(temperature=0, max_tokens=20)) for _ in "ab")
    drive(runner, warm, speculator, scheduler)
    drive(runner, cold)
    assert _answers(warm) == _answers(cold)
    size = runner.block_size
    assert [seq.num_cached or 0 for seq in warm] == [
        seq.prompt_len // size * size for seq in early
    ], "prompts are remembered all the same"


def test_few_blocks_change_nothing_where_the_exit_is_never_sure(
    runner: Any, prompts: Tokens
) -> None:
    way, speculator = WAYS["several at a time"], Speculator({})
    plain, early = _ask(runner, prompts, way), _ask(runner, prompts, way, NEVER)
    drive(runner, plain)
    scheduler = scheduler_of(
        runner, speculator, num_blocks=256 // runner.block_size, max_batch_tokens=60
    )
    drive(runner, early, speculator, scheduler, stagger=1)
    assert scheduler.num_preemptions
    assert _answers(early) == _answers(plain)


@pytest.mark.parametrize("threshold", [ALWAYS, AT_TIMES])
@pytest.mark.parametrize("way", GREEDY.values(), ids=GREEDY.keys())
def test_the_preempted_go_on_as_they_should(
    runner: Any, reference: Reference, prompts: Tokens, way: SamplingParams, threshold: float
) -> None:
    """What waited is computed again through all layers, so that more tokens are the model's."""
    speculator = Speculator({})
    scheduler = scheduler_of(
        runner, speculator, num_blocks=256 // runner.block_size, max_batch_tokens=60
    )
    early = _ask(runner, prompts, way, threshold)
    drive(runner, early, speculator, scheduler, stagger=1)
    assert scheduler.num_preemptions
    for seq, answer, num_exited in zip(early, _answers(early), _exited(early), strict=True):
        whole, first = (scores.argmax(-1).tolist() for scores in reference.read(seq))
        pairs = list(zip(whole, first, strict=True))
        assert all(token in pair for token, pair in zip(answer, pairs, strict=True))
        own = sum(token == a != b for token, (a, b) in zip(answer, pairs, strict=True))
        exits = sum(token == b != a for token, (a, b) in zip(answer, pairs, strict=True))
        assert 0 < exits <= num_exited <= len(answer) - own


@pytest.mark.parametrize(("quantization", "kv_dtype"), [("int8", "u8"), ("int4", "auto")])
def test_quantized_models_leave_early_too(
    quantization: Any, kv_dtype: Any, folder: str, prompts: Tokens
) -> None:
    options = LoadOptions(quantization)
    runner, way = _openvino(folder, options, kv_dtype=kv_dtype), WAYS["several at a time"]
    found = []
    for threshold in (None, NEVER, AT_TIMES):
        found.append(_ask(runner, prompts, way, threshold))
        drive(runner, found[-1])
    plain, never, at_times = found
    assert _answers(never) == _answers(plain) != _answers(at_times)
    one_by_one = _ask(runner, prompts, GREEDY["one at a time"], AT_TIMES)
    drive(runner, one_by_one)
    assert _answers(one_by_one) == _answers(at_times)


def test_other_numbers_of_threads_change_nothing(folder: str, prompts: Tokens) -> None:
    """Graphs are compiled when they are asked for, and again after a change of plan."""
    runner, way, found = _openvino(folder), WAYS["several at a time"], []
    for plan in (None, ThreadPlan((1, 4), (1, 2)), ThreadPlan.fixed(1)):
        if plan is not None:
            runner.use_threads(plan)
        early = _ask(runner, prompts, way, AT_TIMES)
        drive(runner, early, stagger=2)
        found.append(_answers(early))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("layer", [0, LAYERS])
@pytest.mark.parametrize("kind", RUNNERS)
def test_there_is_no_exit_there(folder: str, kind: str, layer: int) -> None:
    runner = RUNNERS[kind](folder)
    with pytest.raises(LoadError, match=r"no early exit after layer"):
        runner.prepare_exit(layer)


# The token after the prompt, and twice as many as may wait and the one that ends the waiting.
NUM_TOKENS = 1 + 2 * (MOST_PENDING + 1)
FLAGS = {"model": "bundled", "dtype": "float32", "device": "cpu"}


def _kinds(layer: int) -> dict[str, dict[str, Any]]:
    return {
        "plain": {},
        "always": {"approximation": Approximation(layer, ALWAYS)},
        "calibrated": {"approximation": Approximation(layer, ALWAYS, 0.9)},
        "never": {"approximation": Approximation(layer, NEVER)},
        "guessed": {"speculation": Speculation("early_exit", 3)},
    }


def _receipts(engine: NativeEngine, kinds: dict[str, dict[str, Any]]) -> dict[str, Receipt]:
    """Answers of each kind, one request coming at each step."""
    source, found = random.Random(3), []
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for name, how in kinds.items():
        prompt = tuple(source.randrange(10, 400) for _ in range(20))
        request = Request(name, (prompt,), params, model="bench", **how)
        engine.check(request)
        engine.prepare(request)
        engine.add_request(request)
        engine.step()
    while engine.has_work:
        engine.step()
        found += engine.settle()
    found += engine.drain()
    return {receipt.request_id: receipt for receipt in found if receipt.status == "final"}


def _flops(shape: ModelShape, layer: int) -> float:
    """The prompt, and twice as many tokens of the exit as may wait and then all layers."""
    first, cycle = shape.first(layer), MOST_PENDING + 1
    early = [
        first.flops(start + at, EXIT_RUN, EXIT_RUN)
        for start in (20, 20 + cycle)
        for at in range(0, MOST_PENDING, EXIT_RUN)
    ]
    whole = [shape.flops(start, cycle, 1) for start in (20, 20 + cycle)]
    return sum([shape.flops(0, 20, 1), *early, *whole])


@pytest.mark.parametrize("kind", RUNNERS)
def test_joules_are_all_on_somebodys_bill(kind: str, tmp_path: Path) -> None:
    bench = load_bench(threads=1, runner=kind, **FLAGS)
    flags = {**FLAGS, "runner": kind, "cache_dir": str(tmp_path)}
    drafting = make_drafting(load(EngineConfig, flags=flags), bench.runner)
    assert drafting.exit is not None
    layer, num_layers = drafting.exit.layer, bench.runner.shape.num_layers
    engine, kinds = bench.engine(bench.account(), 8, drafting.speculator), _kinds(layer)
    receipts = _receipts(engine, kinds)

    totals = engine.account.totals
    assert totals.residual < 1e-9
    assert engine.account.num_violations == 0
    assert set(receipts) == set(kinds)
    billed = [(r.active_j or 0) + (r.idle_j or 0) for r in receipts.values()]
    assert totals.requests_j == pytest.approx(sum(billed))
    for receipt in receipts.values():
        parts = (receipt.prefill_j or 0) + (receipt.decode_j or 0) + (receipt.draft_j or 0)
        assert receipt.active_j == pytest.approx(parts)
        assert (receipt.draft_j or 0) > 0 or receipt.request_id != "guessed"
        assert (receipt.drafted_tokens > 0) == (receipt.request_id == "guessed")
    assert receipts["always"].flops == pytest.approx(_flops(bench.runner.shape, layer))
    mean = num_layers - (num_layers - layer) * 2 * MOST_PENDING / NUM_TOKENS
    found = {
        name: (r.approximate, r.mean_layers, r.agreement_target) for name, r in receipts.items()
    }
    assert found == {
        "plain": (False, None, None),
        "always": (True, pytest.approx(mean), None),
        "calibrated": (True, pytest.approx(mean), 0.9),
        "never": (True, num_layers, None),
        "guessed": (False, None, None),
    }


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_calibration_measures_what_thresholds_give(kind: str) -> None:
    bench = load_bench("bundled", threads=1, runner=kind)
    prompts = calibrate.find_prompts(bench, None, 12, 24)
    plain, *rows = calibrate.calibrate(bench, "bundled", 2, prompts, 24)
    num_layers = bench.runner.shape.num_layers
    assert len(prompts) == 12
    for row in (plain, *rows):
        if row["asked"] is None:
            assert (row["mean_layers"], row["same_answers"]["share"]) == (num_layers, 1.0)
            assert row["measured"]["share"] > 0.98, "only rounding differs"
        elif row["threshold"] is not None:
            assert 2 < row["mean_layers"] <= num_layers
            assert row["calibrated"]["share"] >= row["asked"]
            assert row["measured"]["interval_95"][1] >= row["asked"]
