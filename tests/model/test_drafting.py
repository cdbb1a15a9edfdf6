"""Guesses change what tokens cost, never the tokens: early exits and draft models on both runners.

Everything runs in float32 through the scheduler, the speculator and a runner, as in the engine.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from greenllm.core import (
    AdapterRef,
    Batch,
    Chunk,
    Request,
    Sample,
    SamplingParams,
    Sequence,
    Speculation,
    SpeculativeMethod,
    sequences_of,
)
from greenllm.engine.blocks import BlockManager
from greenllm.engine.scheduler import Scheduler
from greenllm.model.info import LoadError
from greenllm.model.lora import LoraWeights, read_lora
from greenllm.model.options import BUNDLED, LoadOptions
from greenllm.options import EngineConfig
from greenllm.runner.draft_model import DraftModel, check_same_vocabulary
from greenllm.runner.early_exit import first_layers
from greenllm.runner.openvino.load import KvCacheOptions, load_openvino_runner
from greenllm.runner.openvino.runner import OpenVinoRunner
from greenllm.runner.registry import load_draft_model, load_runner
from greenllm.runner.stepwise import StepByStep
from greenllm.runner.threads import ThreadPlan
from greenllm.runner.torch import TorchRunner, load_torch_runner
from greenllm.speculation.drafter import Drafter
from greenllm.speculation.speculator import Drafted, Speculator
from tests.model.driving import GPT2, LLAMA, VOCABULARY, assemble, drive, random_prompts, save
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
MODELS = {BUNDLED: BUNDLED, "stories260k": "stories260k/hf", "babyllama": "babyllama-tok105/hf"}
SIZES = LLAMA | {"num_hidden_layers": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": GPT2 | {"n_layer": 3, "initializer_range": 0.02},
    "OPT": SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "GPTNeoX": SIZES,
    "Gemma2": SIZES | {"head_dim": 16},
    "Qwen3": SIZES | {"head_dim": 16},
}
METHOD: SpeculativeMethod = "draft_model"
OFF = Speculation("off")


def _openvino(folder: str, **caches: Any) -> OpenVinoRunner:
    return load_openvino_runner(folder, LoadOptions(), KvCacheOptions(2**25, 8, **caches))


def _torch(folder: str, **options: Any) -> TorchRunner:
    options = {"block_size": 8, "kv_cache_bytes": 2**25, "max_num_seqs": 8} | options
    return load_torch_runner(folder, LoadOptions(device="cpu"), **options)


RUNNERS: dict[str, Callable[..., Any]] = {"openvino": _openvino, "torch": _torch}


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model whose early exits guess right now and then."""
    return save(_llama(num_hidden_layers=6, initializer_range=0.12), tmp_path_factory.mktemp("six"))


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request: pytest.FixtureRequest, six_layers: str) -> Any:
    return RUNNERS[request.param](six_layers)


@pytest.fixture(scope="module")
def exits() -> Callable[..., Any]:
    """`(runner, layer, num_tokens)`: an early exit that is ready."""

    def make(runner: Any, layer: int = 3, *num_tokens: int) -> Any:
        drafter = runner.early_exit(layer)
        for number in num_tokens or (1, 3):
            drafter.prepare(number)
        return drafter

    return make


def _llama(**options: Any) -> Any:
    return transformers.LlamaConfig(**{**SIZES, **options})


def _ask(
    runner: Any,
    prompts: SequenceOf[SequenceOf[int]],
    params: SamplingParams,
    adapters: SequenceOf[AdapterRef | None] = (),
    speculation: SequenceOf[Speculation | None] = (),
) -> list[Sequence]:
    """One sequence for each prompt; adapters and ways to speculate in turns."""
    sequences = []
    for i, prompt in enumerate(prompts):
        request = Request(
            f"request-{i}",
            (tuple(prompt),),
            params,
            model="",
            adapter=adapters[i % len(adapters)] if adapters else None,
            speculation=speculation[i % len(speculation)] if speculation else None,
        )
        ends, longest = frozenset[int](), runner.info.context_length
        sequences += sequences_of(request, eos_token_ids=ends, max_len=longest)
    return sequences


def _drive(
    runner: Any,
    sequences: SequenceOf[Sequence],
    drafter: Drafter | None = None,
    *,
    num_tokens: int = 3,
    **how: Any,
) -> Scheduler:
    """Run sequences to their ends, with guesses where there is a drafter."""
    default = OFF if drafter is None else Speculation(METHOD, num_tokens)
    speculator = Speculator({} if drafter is None else {METHOD: drafter}, default)
    check = _every_guess_was_computed_once
    return drive(runner, sequences, speculator, on_drafted=check, **how)


def _every_guess_was_computed_once(drafted: Drafted) -> None:
    """Each step of a pass that samples makes one guess, and no guess comes from elsewhere."""
    steps: dict[int, int] = {}
    for chunks, num_steps in drafted.passes:
        for chunk in chunks:
            made = num_steps if chunk.samples else 0
            steps[id(chunk.seq)] = steps.get(id(chunk.seq), 0) + made
    for chunk in drafted.chunks:
        assert steps.get(id(chunk.seq), 0) == len(chunk.draft)


def _answers(sequences: SequenceOf[Sequence]) -> list[list[int]]:
    return [seq.token_ids[seq.prompt_len :] for seq in sequences]


def _greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens)


def _accepted(sequences: SequenceOf[Sequence]) -> int:
    return sum(seq.num_accepted for seq in sequences)


def _drafted(sequences: SequenceOf[Sequence]) -> int:
    return sum(seq.num_drafted for seq in sequences)


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("name", MODELS)
def test_early_exit_changes_no_greedy_token(
    name: str, kind: str, data: Callable[[str], Path], exits: Callable[..., Any]
) -> None:
    path = Path(MODELS[name])
    folder = BUNDLED if name == BUNDLED else str(data(path.parent.name) / path.name)
    runner = RUNNERS[kind](folder)
    prompts = random_prompts(runner.info.vocab_size, (40, 3, 17, 29), seed=5)
    plain, guessed = (_ask(runner, prompts, _greedy(48)) for _ in range(2))
    _drive(runner, plain)
    drafter = exits(runner, runner.shape.num_layers - 1, 1, 2, 4)
    _drive(runner, guessed, drafter, num_tokens=4, stagger=3, max_batch_tokens=30)
    assert _answers(guessed) == _answers(plain)
    assert 0 < _accepted(guessed) <= _drafted(guessed)


def test_beside_requests_that_do_not_guess(runner: Any, exits: Callable[..., Any]) -> None:
    prompts = random_prompts(VOCABULARY, (9, 30, 4, 22, 50, 2), seed=2)
    plain = _ask(runner, prompts, _greedy(40))
    ways = (OFF, None, Speculation(METHOD, 1))
    guessed = _ask(runner, prompts, _greedy(40), speculation=ways)
    _drive(runner, plain)
    _drive(runner, guessed, exits(runner), stagger=2)
    assert _answers(guessed) == _answers(plain)
    assert [seq.num_drafted > 0 for seq in guessed] == [False, True, True] * 2


def test_when_sequences_lose_their_blocks(runner: Any, exits: Callable[..., Any]) -> None:
    prompts = random_prompts(VOCABULARY, (60, 50, 40), seed=3)
    plain, guessed = (_ask(runner, prompts, _greedy(60)) for _ in range(2))
    _drive(runner, plain)
    few = 190 // runner.block_size
    scheduler = _drive(runner, guessed, exits(runner), num_blocks=few)
    assert scheduler.num_preemptions
    assert _answers(guessed) == _answers(plain)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5])
def test_at_the_ends_of_answers_and_of_the_context(
    runner: Any, exits: Callable[..., Any], max_tokens: int
) -> None:
    context = runner.info.context_length
    lengths = (5, context - 1, context - 2, context - 4)
    prompts = random_prompts(VOCABULARY, lengths, seed=4)
    plain, guessed = (_ask(runner, prompts, _greedy(max_tokens)) for _ in range(2))
    _drive(runner, plain)
    _drive(runner, guessed, exits(runner))
    assert _answers(guessed) == _answers(plain)


def test_seeded_samples_are_the_same(runner: Any, exits: Callable[..., Any]) -> None:
    params = SamplingParams(
        temperature=0.7, top_p=0.95, presence_penalty=0.5, seed=11, n=2, max_tokens=40
    )
    prompts = random_prompts(VOCABULARY, (12, 31), seed=6)
    plain, guessed = (_ask(runner, prompts, params) for _ in range(2))
    _drive(runner, plain)
    _drive(runner, guessed, exits(runner))
    assert _answers(guessed) == _answers(plain)
    assert _drafted(guessed)


class _Adapters:
    """Weights by digest."""

    def __init__(self, folders: SequenceOf[Path], runner: Any) -> None:
        self._found = [read_lora(folder, runner.lora_targets) for folder in folders]
        self.refs = [AdapterRef(weights.digest, weights.digest) for weights in self._found]

    def weights(self, digest: str) -> LoraWeights:
        return next(weights for weights in self._found if weights.digest == digest)


def test_requests_with_adapters_get_their_own_tokens(
    runner: Any,
    six_layers: str,
    exits: Callable[..., Any],
    make_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folders = [make_adapter(six_layers, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    adapters = _Adapters(folders, runner)
    runner.use_adapters(adapters)
    refs = (*adapters.refs, None)
    prompts = random_prompts(VOCABULARY, (9, 30, 4, 22, 50), seed=2)
    plain, guessed = (_ask(runner, prompts, _greedy(30), refs) for _ in range(2))
    bare = _ask(runner, prompts, _greedy(30))
    for sequences, drafter in ((plain, None), (guessed, exits(runner)), (bare, None)):
        _drive(runner, sequences, drafter)
    assert _answers(guessed) == _answers(plain) != _answers(bare)
    assert _drafted(guessed)


def _ready(runner: Any, prompts: SequenceOf[SequenceOf[int]], room: int) -> list[Chunk]:
    """Sequences whose last token alone is not computed, in blocks that are scattered."""
    sequences = _ask(runner, prompts, _greedy(64))
    places = list(range(runner.num_blocks))
    random.Random(3).shuffle(places)
    chunks = []
    for seq in sequences:
        needed = -(-(len(seq.token_ids) + room) // runner.block_size) + 1
        seq.block_table, places = places[:needed], places[needed:]
        chunks.append(Chunk(seq, 0, len(seq.token_ids) - 1, samples=False))
    runner.run(Batch(tuple(chunks)))
    return [Chunk(c.seq, c.end, 1, samples=True, room=room) for c in chunks]


LENGTHS = (31, 40, 2, 33, 64, 17)


@pytest.mark.parametrize("layer", [1, 4])
def test_guesses_are_those_of_single_steps(
    six_layers: str, exits: Callable[..., Any], layer: int
) -> None:
    prompts = random_prompts(VOCABULARY, LENGTHS, seed=8)
    ours = _openvino(six_layers)
    together = exits(ours, layer, 1, 7)
    found = together.draft(_ready(ours, prompts, room=7))
    assert {len(ids) for ids in found} == {7}

    reference = _torch(six_layers)
    expected = exits(reference, layer).draft(_ready(reference, prompts, room=7))
    assert found == expected

    assert _one_by_one(together, _ready(ours, prompts, room=7)) == found


@pytest.mark.parametrize(("quantization", "kv_dtype"), [("int8", "u8"), ("int4", "auto")])
def test_guesses_of_quantized_models(
    quantization: Any, kv_dtype: Any, six_layers: str, exits: Callable[..., Any]
) -> None:
    options, caches = LoadOptions(quantization), KvCacheOptions(2**25, 8, kv_dtype)
    runner = load_openvino_runner(six_layers, options, caches)
    prompts = random_prompts(VOCABULARY, LENGTHS, seed=8)
    drafter = exits(runner, 3, 1, 4)
    found = drafter.draft(_ready(runner, prompts, room=4))
    assert _one_by_one(drafter, _ready(runner, prompts, room=4)) == found


def _one_by_one(drafter: Drafter, chunks: list[Chunk]) -> list[tuple[int, ...]]:
    """As many guesses as there is room for, each asked for alone."""
    found: list[tuple[int, ...]] = [()] * len(chunks)
    for _ in range(chunks[0].room):
        step = drafter.draft([replace(chunk, room=1) for chunk in chunks])
        for i, (chunk, ids) in enumerate(zip(chunks, step, strict=True)):
            found[i] += ids
            chunk.seq.token_ids += ids
            chunks[i] = Chunk(chunk.seq, chunk.end, 1, samples=True)
    return found


def test_all_layers_guess_what_the_model_says(runner: Any) -> None:
    prompts = random_prompts(VOCABULARY, LENGTHS, seed=9)
    drafter = runner.as_drafter()
    drafter.prepare(4)
    chunks = _ready(runner, prompts, room=4)
    found = drafter.draft(chunks)
    assert found == StepByStep(runner.run, runner.shape).draft(chunks)
    # Again, with tokens that are computed together with the newest.
    behind = [
        replace(chunk, start=chunk.start - back, num_tokens=1 + back)
        for chunk, back in zip(chunks, (0, 1, 1, 7, 0, 3), strict=True)
    ]
    assert drafter.draft(behind) == found


def test_nothing_is_written_that_anybody_reads(runner: Any, exits: Callable[..., Any]) -> None:
    """Other sequences fill all other blocks, and nobody's next logits are changed."""
    drafter = exits(runner, 2, 1, 3)
    used = sum(-(-(length + 4) // runner.block_size) + 1 for length in LENGTHS)
    num_others = (runner.num_blocks - used) // (-(-114 // runner.block_size) + 1)
    assert num_others > 1
    lengths = (*LENGTHS, *[110] * num_others)
    chunks = _ready(runner, random_prompts(VOCABULARY, lengths, seed=10), room=4)
    plain, rows = [replace(chunk, room=0) for chunk in chunks], [range(1)] * len(chunks)
    before = runner.logits(plain, rows).clone()
    guesses = drafter.draft([replace(chunk, room=i) for i, chunk in enumerate(chunks[:6])])
    assert [len(ids) for ids in guesses] == list(range(6))
    assert torch.equal(runner.logits(plain, rows), before)


@pytest.mark.parametrize("kind", RUNNERS)
def test_what_is_not_finite_spoils_its_own_guesses_only(
    kind: str, six_layers: str, exits: Callable[..., Any], tmp_path: Path
) -> None:
    """Here a token that the model does not know a number for."""
    model = transformers.AutoModelForCausalLM.from_pretrained(six_layers)
    with torch.no_grad():
        model.get_input_embeddings().weight[95] = torch.nan
    model.save_pretrained(tmp_path)
    runner = RUNNERS[kind](str(tmp_path))
    drafter = exits(runner, 3, 3)
    expected = drafter.draft(_ready(runner, [[5, 6, 7]] * 2, room=3))
    chunks = _ready(runner, [[5, 95, 7], [5, 6, 7]], room=3)
    first, second = drafter.draft(chunks)
    assert second == expected[1]
    assert all(0 <= token_id < VOCABULARY for token_id in first)
    assert drafter.draft(chunks[:1]) == [first]


def test_guesses_wait_until_they_are_prepared(six_layers: str) -> None:
    runner = _openvino(six_layers)
    drafter = runner.early_exit(2)
    (chunk,) = _ready(runner, [[1, 2, 3]], room=9)
    assert drafter.draft([chunk]) == [()]
    callers = [threading.Thread(target=drafter.prepare, args=(n,)) for n in (2, 4, 4, 2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE_S)
    rooms = [(1, 0), (2, 2), (3, 2), (4, 4), (6, 6), (7, 6), (9, 8)]
    for room, expected in rooms:
        assert len(drafter.draft([replace(chunk, room=room)])[0]) == expected
    drafter.prepare(15)
    before = drafter.draft([chunk])
    assert len(before[0]) == 9 - 1
    runner.use_threads(ThreadPlan((1, 2), (2, 1)))
    assert drafter.draft([chunk]) == before
    assert runner.early_exit(2) is drafter


@pytest.mark.parametrize("layer", [-1, 0, 6, 7])
def test_there_is_no_such_exit(runner: Any, layer: int) -> None:
    with pytest.raises(LoadError, match=r"must be in \[1, 5\]"):
        runner.early_exit(layer)


def test_what_an_exit_costs(runner: Any, exits: Callable[..., Any]) -> None:
    shape, whole = exits(runner, 2).shape, runner.shape
    assert (shape.num_layers, shape.head_parameters) == (2, whole.head_parameters)
    assert shape.body_parameters == pytest.approx(whole.body_parameters / 3, rel=0.01)
    assert shape.kv_bytes_per_token == whole.kv_bytes_per_token // 3


@pytest.mark.parametrize("family", FAMILIES)
def test_early_exit_of_other_families(
    family: str, exits: Callable[..., Any], tmp_path: Path
) -> None:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    runner = _torch(save(config, tmp_path))
    prompts = random_prompts(VOCABULARY, (9, 30), seed=2)
    plain, guessed = (_ask(runner, prompts, _greedy(20)) for _ in range(2))
    _drive(runner, plain)
    _drive(runner, guessed, exits(runner, 2))
    assert _answers(guessed) == _answers(plain)
    assert _drafted(guessed)


class _TwoLists(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (torch.nn.ModuleList([torch.nn.Identity()] * 2) for _ in range(2))


def test_models_that_cannot_be_left_early_say_why(six_layers: str) -> None:
    unclear: Any = _TwoLists()
    with pytest.raises(LoadError, match="_TwoLists cannot be left early: its layers are not in"):
        first_layers(unclear, 1, 2)
    spread = transformers.AutoModelForCausalLM.from_pretrained(six_layers)
    spread.base_model.forward = spread.base_model.forward
    with pytest.raises(LoadError, match="LlamaForCausalLM cannot be left early: it is spread"):
        first_layers(spread, 3, 6)
    runner, model, _ = assemble(six_layers)
    model.model.norm.forward = lambda x: 1 / 0
    with pytest.raises(LoadError, match="cannot be left early: division by zero"):
        runner.early_exit(3)


def _draft_model(target: Any, runner: Any, num_tokens: int = 3) -> DraftModel:
    drafter = DraftModel(runner, runner.as_drafter())
    drafter.prepare(num_tokens)
    assert (runner.num_blocks, runner.block_size) == (target.num_blocks, target.block_size)
    return drafter


@pytest.fixture(scope="module", params=RUNNERS)
def pair(
    request: pytest.FixtureRequest, six_layers: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, DraftModel]:
    """A model, and a smaller one of a shorter context."""
    config = _llama(max_position_embeddings=96, initializer_range=0.12)
    small = save(config, tmp_path_factory.mktemp("small"), seed=1)
    load = RUNNERS[request.param]
    target = load(six_layers)
    return target, _draft_model(target, load(small, num_blocks=target.num_blocks))


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_draft_model_changes_no_token(pair: tuple[Any, DraftModel], temperature: float) -> None:
    target, drafter = pair
    prompts = random_prompts(VOCABULARY, (9, 30, 4, 70, 50, 95, 100), seed=2)
    params = SamplingParams(temperature=temperature, seed=5, max_tokens=40)
    plain, guessed = (_ask(target, prompts, params) for _ in range(2))
    _drive(target, plain)
    few = 200 // target.block_size
    scheduler = _drive(target, guessed, drafter, stagger=2, num_blocks=few, max_batch_tokens=60)
    assert scheduler.num_preemptions
    assert _answers(guessed) == _answers(plain)
    assert _drafted(guessed[:4])
    assert not _drafted(guessed[6:]), "the draft model's context has ended"


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_draft_model_that_is_the_model_is_always_right(kind: str, six_layers: str) -> None:
    """Its keys and values are right whatever it was given to read, and with plain steps between."""
    target, twin = RUNNERS[kind](six_layers), RUNNERS[kind](six_layers)
    drafter = _draft_model(target, twin)
    prompts = random_prompts(VOCABULARY, (9, 30, 4, 70, 50), seed=2)
    sequences = _ask(target, prompts, _greedy(40))
    speculator = Speculator({METHOD: drafter}, Speculation(METHOD, 3))
    scheduler = Scheduler(
        BlockManager(target.num_blocks, target.block_size, prefix_cache=True),
        max_num_seqs=8,
        max_batch_tokens=90,
        clock=time.monotonic,
        num_drafts=speculator.num_drafts,
    )
    for seq in sequences:
        scheduler.add(seq)
    pauses = random.Random(1)
    while scheduler.has_work:
        batch = scheduler.schedule()
        target.copy_blocks(batch.copies)
        if pauses.random() < 0.6:
            batch, _ = speculator.draft(batch)
        samples = target.run(batch)
        scheduler.commit(batch, samples)
    assert _accepted(sequences) == _drafted(sequences) > 0


def test_wrong_guesses_leave_no_trace_in_the_draft_models_cache(six_layers: str) -> None:
    target, twin = _openvino(six_layers), _openvino(six_layers)
    drafter = _draft_model(target, twin)
    (prompt,) = random_prompts(VOCABULARY, (20,), seed=12)
    chunks = _ready(target, [prompt], room=3)
    (guess,) = drafter.draft(chunks)
    seq = chunks[0].seq
    for wrong_after in (1, 3):
        wrong = [(guess[wrong_after] + 1) % VOCABULARY] if wrong_after < 3 else [7]
        seq.token_ids += [*guess[:wrong_after], *wrong]
        start = len(seq.token_ids) - 1
        chunk = Chunk(seq, start, 1, samples=True, room=3)
        (guess,) = drafter.draft([chunk])
        fresh = _ready(target, [seq.token_ids], room=3)
        assert _draft_model(target, _openvino(six_layers)).draft(fresh) == [guess]


def test_long_prompts_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(_llama(max_position_embeddings=2048), tmp_path)
    target, twin = _openvino(folder), _openvino(folder)
    drafter = _draft_model(target, twin)
    sizes: list[int] = []
    run = twin.run

    def watch(batch: Batch) -> list[Sample]:
        sizes.append(batch.num_tokens)
        return run(batch)

    monkeypatch.setattr(twin, "run", watch)
    sequences = _ask(target, random_prompts(VOCABULARY, (1100, 3, 600), seed=2), _greedy(12))
    _drive(target, sequences, drafter, max_batch_tokens=2000)
    assert max(sizes) == 512
    assert sum(sizes) >= 1700 - 16
    assert _accepted(sequences) == _drafted(sequences)
    assert all(seq.num_drafted for seq in sequences)


def _config(tmp_path: Path, **options: Any) -> EngineConfig:
    return EngineConfig(cache_dir=tmp_path, kv_cache_gb=0.02, max_num_seqs=4, **options)


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_draft_model_is_loaded_beside_its_target(kind: Any, tmp_path: Path) -> None:
    config = _config(tmp_path, runner=kind, max_context=256)
    target = load_runner(config)
    drafter = load_draft_model(config, target, BUNDLED)
    drafter.prepare(2)
    assert drafter.runner.info.runner == kind
    assert drafter.shape == drafter.runner.shape
    plain, guessed = (_ask(target, [[5, 6, 7], [9]], _greedy(16)) for _ in range(2))
    _drive(target, plain)
    _drive(target, guessed, drafter, num_tokens=2)
    assert _answers(guessed) == _answers(plain)
    assert _accepted(guessed) == _drafted(guessed) > 0


def test_draft_models_that_do_not_fit_are_refused(
    tmp_path: Path, data: Callable[[str], Path], six_layers: str
) -> None:
    config = _config(tmp_path)
    target = load_runner(config)
    stories = str(data("stories260k") / "hf")
    check_same_vocabulary(BUNDLED, BUNDLED)
    with pytest.raises(LoadError, match=r"--draft-model .*hf: its token 0 is .*bundled is"):
        load_draft_model(config, target, stories)
    with pytest.raises(LoadError, match=r"--draft-model .* cannot load the tokenizer"):
        load_draft_model(config, target, six_layers)
