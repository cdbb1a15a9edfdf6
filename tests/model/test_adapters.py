"""Adapters in one batch equal PEFT with each alone; the base's rows do not notice.

`RUNNERS` names the ways to load a runner; another runner needs one more entry.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

from greenllm.core import AdapterRef, Request, SamplingParams, Sequence, sequences_of
from greenllm.model.lora import LoraWeights, read_lora
from greenllm.model.options import LoadOptions
from greenllm.model.spec import UnknownArchitectureError
from greenllm.runner.base import Runner
from greenllm.runner.openvino.decoders import DecoderFactory
from greenllm.runner.openvino.load import KvCacheOptions, load_openvino_runner
from greenllm.runner.openvino.lora import LoraBank
from greenllm.runner.threads import ThreadPlan
from greenllm.runner.torch import load_torch_runner
from tests.model.driving import GPT2, LLAMA, VOCABULARY, drive, random_prompts, save

# PEFT asks transformers for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TOLERANCE = 2e-4
LENGTHS = (21, 5, 13, 9, 17)
MAX_TOKENS = 8
SIZES = LLAMA | {"initializer_range": 0.2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "phi3": ("Phi3Config", SIZES),
    "gpt2": ("GPT2Config", GPT2 | {"initializer_range": 0.2}),
}
ADAPTERS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "narrow": {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "wide": {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"},
        "stabilized": {
            "r": 4,
            "lora_alpha": 4,
            "use_rslora": True,
            "target_modules": ["down_proj", "o_proj"],
        },
        "patterned": {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "gate_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 3, "gate_proj": 6},
            "alpha_pattern": {"^model.layers.1.mlp.gate_proj": 5},
        },
        "first-layer": {"r": 5, "target_modules": ["k_proj"], "layers_to_transform": [0]},
    },
    "phi3": {
        "narrow": {"r": 2, "lora_alpha": 8, "target_modules": ["qkv_proj"]},
        "wide": {"r": 8, "target_modules": "all-linear"},
        "fused": {"r": 3, "lora_alpha": 6, "target_modules": ["gate_up_proj", "o_proj"]},
    },
    "gpt2": {
        "narrow": {"r": 2, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True},
        "wide": {"r": 8, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
        "mlp": {"r": 3, "lora_alpha": 6, "target_modules": ["c_fc"], "fan_in_fan_out": True},
    },
}
MakeRunner = Callable[[str], Runner]


def _torch_runner(folder: str) -> Runner:
    return load_torch_runner(
        folder, LoadOptions(), block_size=4, kv_cache_bytes=2**22, max_num_seqs=8
    )


def _openvino_runner(folder: str) -> Runner:
    try:
        return load_openvino_runner(folder, LoadOptions(), KvCacheOptions(2**23, 8))
    except UnknownArchitectureError as error:
        pytest.skip(str(error))


RUNNERS: dict[str, MakeRunner] = {"torch": _torch_runner, "openvino": _openvino_runner}


class Folders:
    """Weights by digest, read from adapter folders."""

    def __init__(self, folders: Mapping[str, Path], targets: Mapping[str, tuple[int, int]]) -> None:
        self.adapters = {name: read_lora(folder, targets) for name, folder in folders.items()}
        self.num_asked = 0

    def ref(self, name: str | None) -> AdapterRef | None:
        return None if name is None else AdapterRef(name, self.adapters[name].digest)

    def weights(self, digest: str) -> LoraWeights:
        self.num_asked += 1
        return next(found for found in self.adapters.values() if found.digest == digest)


@dataclass(frozen=True)
class Zoo:
    """A base, adapters for it, and what transformers and PEFT say about a text."""

    base: str
    folders: Mapping[str, Path]

    def logprobs(self, name: str | None, token_ids: SequenceOf[int]) -> torch.Tensor:
        """Log probabilities of every next token, with one adapter or none."""
        model: Any = AutoModelForCausalLM.from_pretrained(self.base).eval()
        if name is not None:
            model = PeftModel.from_pretrained(model, self.folders[name]).eval()
        with torch.no_grad():
            logits: torch.Tensor = model(torch.tensor([list(token_ids)])).logits[0]
        return logits.float().log_softmax(-1)


@pytest.fixture(scope="module", params=FAMILIES)
def zoo(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_adapter: Callable[..., Path],
) -> Zoo:
    kind, settings = FAMILIES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    base = save(getattr(transformers, kind)(**settings), root / "base")
    folders = {
        name: make_adapter(base, root / name, seed=seed, **options)
        for seed, (name, options) in enumerate(ADAPTERS[request.param].items())
    }
    return Zoo(base, folders)


@pytest.fixture(params=RUNNERS)
def make_runner(request: pytest.FixtureRequest) -> MakeRunner:
    return RUNNERS[request.param]


def ask(runner: Runner, prompt: SequenceOf[int], adapter: AdapterRef | None, name: str) -> Sequence:
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, logprobs=20, prompt_logprobs=20)
    request = replace(Request(name, (tuple(prompt),), params, model=""), adapter=adapter)
    (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=runner.info.context_length)
    return seq


class Recorder:
    """A runner that remembers the log probabilities it gave each request."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.found: dict[str, list[Any]] = {}
        self.mixed_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def run(self, batch: Any) -> Any:
        samples = self.runner.run(batch)
        for chunk, sample in zip(batch.chunks, samples, strict=True):
            entries = self.found.setdefault(chunk.seq.request.request_id, [])
            entries += [*sample.prompt, *sample.logprobs]
        phases = {chunk.phase for chunk in batch.chunks}
        adapters = {chunk.seq.request.adapter for chunk in batch.chunks}
        self.mixed_steps += len(phases) == 2 and len(adapters) >= 3
        return samples


def test_a_mixed_batch_equals_peft_with_each_adapter_alone(
    zoo: Zoo, make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = Recorder(make_runner(zoo.base))
    source = Folders(zoo.folders, runner.lora_targets)
    runner.use_adapters(source)
    names = [None, *zoo.folders, None]
    prompts = random_prompts(VOCABULARY, (LENGTHS * 2)[: len(names)])
    sequences = [
        ask(runner, prompt, source.ref(name), f"{i}")
        for i, (prompt, name) in enumerate(zip(prompts, names, strict=True))
    ]

    drive(runner, sequences, max_batch_tokens=11, stagger=2)

    worst = 0.0
    for seq, name in zip(sequences, names, strict=True):
        expected = zoo.logprobs(name, seq.token_ids)
        entries = runner.found[seq.request.request_id]
        assert len(entries) == len(seq.token_ids) - 1
        for row, entry in enumerate(entries):
            for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
                worst = max(worst, abs(expected[row, token_id].item() - logprob))
    with capsys.disabled():
        print(f"\n  largest difference in log probability from PEFT: {worst:.1e}")
    assert runner.mixed_steps >= 3
    assert worst < TOLERANCE


def test_adapters_change_the_answer(zoo: Zoo) -> None:
    """Otherwise the test above would not see adapters that are ignored or swapped."""
    text = list(range(5, 25))
    found = [zoo.logprobs(name, text) for name in (None, *zoo.folders)]
    for i, one in enumerate(found):
        assert all((one - other).abs().max() > 100 * TOLERANCE for other in found[:i])


def test_base_rows_do_not_notice_their_company(zoo: Zoo) -> None:
    """Same batches, with adapters on the other rows or without: equal to the last bit."""
    prompts = random_prompts(VOCABULARY, (13, 13, 13))
    found = []
    for names in ([None, None, None], [None, *list(zoo.folders)[:2]]):
        runner = Recorder(_torch_runner(zoo.base))
        source = Folders(zoo.folders, runner.lora_targets)
        runner.use_adapters(source)
        sequences = [
            ask(runner, prompt, source.ref(name), f"{i}")
            for i, (prompt, name) in enumerate(zip(prompts, names, strict=True))
        ]
        drive(runner, sequences, max_batch_tokens=64)
        found.append(runner.found)
    assert found[0]["0"] == found[1]["0"]
    assert found[0]["1"] != found[1]["1"]


def test_no_hooks_before_the_first_adapter_and_none_again_for_the_second(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = _torch_runner(zoo.base)
    source = Folders(zoo.folders, runner.lora_targets)
    runner.use_adapters(source)
    (prompt,) = random_prompts(VOCABULARY, (9,))
    hooked, counts = [], []

    def register(module: Any, hook: Any, then: Any = torch.nn.Module.register_forward_hook) -> Any:
        hooked.append(module)
        return then(module, hook)

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", register)
    for name in (None, *list(zoo.folders)[:2]):
        drive(runner, [ask(runner, prompt, source.ref(name), "a")])
        counts.append(len(hooked))
    assert counts == [0, len(runner.lora_targets), len(runner.lora_targets)]


def test_stacks_are_reused_while_requests_come_and_go(zoo: Zoo) -> None:
    runner = _torch_runner(zoo.base)
    source = Folders(zoo.folders, runner.lora_targets)
    runner.use_adapters(source)
    (prompt,) = random_prompts(VOCABULARY, (9,))
    first, second = list(zoo.folders)[:2]
    both = [ask(runner, prompt, source.ref(name), name) for name in (first, second)]
    drive(runner, both)
    asked = source.num_asked
    drive(runner, [ask(runner, prompt, source.ref(first), "again")])
    assert asked == source.num_asked == 2


def test_prefixes_are_not_shared_between_adapters_or_with_the_base(
    zoo: Zoo, make_runner: MakeRunner
) -> None:
    """Long common prompts one after the other, in one pool of blocks."""
    runner = make_runner(zoo.base)
    source = Folders(zoo.folders, runner.lora_targets)
    runner.use_adapters(source)
    prompt = [7 + i for i in range(5 * max(4, runner.block_size // 2))]
    sequences = []
    names = [None, *list(zoo.folders)[:2], None]
    for i, name in enumerate(names):
        seq = ask(runner, prompt, source.ref(name), f"{i}")
        sampling = replace(seq.request.sampling, prompt_logprobs=None)
        seq.request, seq.sampling = replace(seq.request, work=sampling), sampling
        sequences.append(seq)
    drive(runner, sequences, stagger=MAX_TOKENS + 2)
    # The base's second finds the first's full blocks, and all of its prompt but the last token.
    full = (len(prompt) + MAX_TOKENS - 1) // runner.block_size * runner.block_size
    assert [seq.num_cached for seq in sequences] == [0, 0, 0, min(full, len(prompt) - 1)]
    for seq, name in zip(sequences, names, strict=True):
        expected = zoo.logprobs(name, seq.token_ids)[len(prompt) - 1 : -1].argmax(-1)
        assert seq.token_ids[len(prompt) :] == expected.tolist()


@pytest.mark.parametrize("zoo", ["llama"], indirect=True)
def test_experts_are_no_targets(zoo: Zoo, tmp_path: Path) -> None:
    assert set(ADAPTERS["llama"]["narrow"]["target_modules"]) <= {
        path.rpartition(".")[2] for path in _torch_runner(zoo.base).lora_targets
    }
    settings = {**SIZES, "num_experts_per_tok": 2, "num_local_experts": 4}
    folder = save(transformers.MixtralConfig(**settings), tmp_path)
    names = {path.rpartition(".")[2] for path in _torch_runner(folder).lora_targets}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize("zoo", ["llama"], indirect=True)
def test_graphs_for_adapters_are_compiled_ahead(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for the projections that some adapter changes, and not again for the next one."""
    runner = _openvino_runner(zoo.base)
    compiled: list[tuple[int, set[str]]] = []
    compile_ = DecoderFactory.compile

    def record(factory: DecoderFactory, threads: int, groups: frozenset[str] = frozenset()) -> Any:
        compiled.append((threads, set(groups)))
        return compile_(factory, threads, groups)

    monkeypatch.setattr(DecoderFactory, "compile", record)
    source = Folders(zoo.folders, runner.lora_targets)
    runner.use_adapters(source)
    (prompt,) = random_prompts(VOCABULARY, (9,))
    drive(runner, [ask(runner, prompt, None, "base")])
    assert compiled == []

    runner.prepare_adapter(source.adapters["narrow"].digest)
    assert compiled == [(1, {"qkv"})]
    drive(runner, [ask(runner, prompt, source.ref("narrow"), "a")])
    drive(runner, [ask(runner, prompt, source.ref("first-layer"), "b")])
    assert len(compiled) == 1

    runner.use_threads(ThreadPlan.fixed(2))
    drive(runner, [ask(runner, prompt, source.ref("wide"), "c")])
    assert compiled[1:] == [(2, set()), (2, {"qkv", "out", "gate_up", "down"})]


@pytest.mark.parametrize("zoo", ["llama"], indirect=True)
def test_more_adapters_than_slots_take_turns(zoo: Zoo, make_runner: MakeRunner) -> None:
    """One, then three, then others: whoever sits in a slot, the answers are PEFT's."""
    runner = make_runner(zoo.base)
    source = Folders(zoo.folders, runner.lora_targets)
    runner.use_adapters(source)
    prompt = list(range(9, 20))
    rounds = [["narrow"], ["wide", "narrow", "stabilized"], ["patterned"], ["first-layer", "wide"]]
    for names in rounds * 2:
        sequences = [ask(runner, prompt, source.ref(name), name) for name in names]
        drive(runner, sequences)
        for seq, name in zip(sequences, names, strict=True):
            expected = zoo.logprobs(name, seq.token_ids)[len(prompt) - 1 : -1].argmax(-1)
            assert seq.token_ids[len(prompt) :] == expected.tolist()


@pytest.mark.parametrize("zoo", ["llama"], indirect=True)
def test_an_adapter_whose_products_are_infinite_fails_alone(
    zoo: Zoo, make_runner: MakeRunner
) -> None:
    """Rows of other requests do not notice: nothing is multiplied by zero to get rid of it."""
    runner = make_runner(zoo.base)
    source = Folders(zoo.folders, runner.lora_targets)
    runner.use_adapters(source)
    layers = source.adapters["wide"].layers
    source.adapters["huge"] = replace(
        source.adapters["wide"],
        digest="huge",
        layers={path: (torch.full_like(a, 1e38), b) for path, (a, b) in layers.items()},
    )
    prompt = list(range(9, 20))
    names = ["huge", None, "narrow"]
    broken, *others = [ask(runner, prompt, source.ref(name), f"{name}") for name in names]
    drive(runner, [broken, *others])
    assert broken.finish_reason == "error"
    for seq, name in zip(others, names[1:], strict=True):
        assert seq.finish_reason == "length"
        expected = zoo.logprobs(name, seq.token_ids)[len(prompt) - 1 : -1].argmax(-1)
        assert seq.token_ids[len(prompt) :] == expected.tolist()


@pytest.mark.parametrize("zoo", ["llama"], indirect=True)
def test_a_bank_outlives_the_step_that_reads_it(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may prepare a wider adapter while the graph reads the bank's memory."""
    runner = _openvino_runner(zoo.base)
    banks: list[LoraBank] = []

    def make(*given: Any) -> LoraBank:
        banks.append(LoraBank(*given))
        return banks[-1]

    monkeypatch.setattr("greenllm.runner.openvino.runner.LoraBank", make)
    source = Folders(zoo.folders, runner.lora_targets)
    runner.use_adapters(source)
    (prompt,) = random_prompts(VOCABULARY, (9,))
    drive(runner, [ask(runner, prompt, source.ref("narrow"), "a")])
    bank = weakref.ref(next(iter(banks.pop().arrays.values())))
    runner.prepare_adapter(source.adapters["wide"].digest)
    gc.collect()
    assert bank() is not None
    drive(runner, [ask(runner, prompt, source.ref("wide"), "b")])
    gc.collect()
    assert bank() is None
