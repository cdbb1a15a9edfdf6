"""The OpenVINO runner says what the torch runner says; quantized, it stays close on real models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from greenllm.core import Chunk, SamplingParams
from greenllm.model import quantize
from greenllm.model.decoder_weights import DecoderWeights
from greenllm.model.info import LoadError
from greenllm.model.options import BUNDLED, LoadOptions
from greenllm.model.spec import UnknownArchitectureError, spec_of
from greenllm.model.weight_cache import cache_file
from greenllm.runner.openvino.constants import Constants
from greenllm.runner.openvino.decoders import DecoderFactory
from greenllm.runner.openvino.graph import GraphOptions, build_graph
from greenllm.runner.openvino.load import KvCacheOptions, load_openvino_runner
from greenllm.runner.openvino.precision import choose_precision
from greenllm.runner.openvino.runner import OpenVinoRunner
from greenllm.runner.threads import ThreadPlan
from tests.model.driving import LLAMA, VOCABULARY, answers, ask, drive, load, random_prompts, save

WEIGHTS = "model.safetensors"
BASE = LLAMA | {"num_hidden_layers": 3, "max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
WINDOWED = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", BASE),
    "llama-tied": ("LlamaConfig", BASE | {"tie_word_embeddings": True}),
    "llama-biased": ("LlamaConfig", BASE | {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaConfig", BASE | {"head_dim": 32}),
    "llama3-angles": ("LlamaConfig", BASE | {"rope_parameters": LLAMA3}),
    "linear-angles": ("LlamaConfig", BASE | {"rope_parameters": LINEAR}),
    "mistral-window": ("MistralConfig", BASE | {"sliding_window": 7}),
    "mistral": ("MistralConfig", BASE | {"sliding_window": None}),
    "qwen2": ("Qwen2Config", BASE),
    "qwen2-window": ("Qwen2Config", BASE | WINDOWED),
    "qwen3": ("Qwen3Config", BASE | {"head_dim": 16}),
    "qwen3-biased": ("Qwen3Config", BASE | {"head_dim": 16, "attention_bias": True}),
    "phi3": ("Phi3Config", BASE),
}
TOLERANCE = 2e-3
STORIES = 40


def _load(folder: str | Path, options: LoadOptions | None = None, **caches: Any) -> OpenVinoRunner:
    caches = {"kv_cache_bytes": 2**23, "max_num_seqs": 8} | caches
    return load_openvino_runner(str(folder), options or LoadOptions(), KvCacheOptions(**caches))


def _logits(runner: Any, prompts: list[list[int]], cuts: list[list[int]]) -> torch.Tensor:
    """Every row's logits, each prompt cut into the chunks of `cuts`, one chunk of each per step."""
    params = SamplingParams(temperature=0, max_tokens=1)
    sequences = [ask(runner, prompt, params)[0] for prompt in prompts]
    per_sequence = -(-runner.info.context_length // runner.block_size)
    for index, seq in enumerate(sequences):
        seq.block_table = list(range(index * per_sequence, (index + 1) * per_sequence))
    found: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(prompts))}
    for step in range(len(cuts[0])):
        chunks = [
            (i, Chunk(seq, sum(cuts[i][:step]), cuts[i][step], samples=True))
            for i, seq in enumerate(sequences)
        ]
        chunks.sort(key=lambda pair: pair[1].num_tokens > 1)
        rows = [range(chunk.num_tokens) for _, chunk in chunks]
        logits = runner.logits([chunk for _, chunk in chunks], rows).clone()
        for (index, chunk), part in zip(
            chunks, logits.split([chunk.num_tokens for _, chunk in chunks]), strict=True
        ):
            found[index].append(part)
            assert len(part) == chunk.num_tokens
    return torch.cat([torch.cat(parts) for parts in found.values()])


def _change_tensors(folder: Path, changes: dict[str, Callable[[torch.Tensor], Any]]) -> None:
    """Put other numbers under the names that end so; None takes a tensor away."""
    tensors = load_file(folder / WEIGHTS)
    for ending, change in changes.items():
        for name in [name for name in tensors if name.endswith(ending)]:
            tensors[name] = change(tensors[name])
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_equal_the_torch_runners(family: str, tmp_path: Path) -> None:
    kind, settings = FAMILIES[family]
    folder = save(getattr(transformers, kind)(**settings), tmp_path)
    _change_tensors(Path(folder), {".bias": lambda bias: torch.randn(bias.shape) / 4})
    ours, reference = _load(folder), load(folder, kv_cache_bytes=2**23)
    prompts = random_prompts(VOCABULARY, (70, 41, 9))
    cuts = [[33, 36, 1], [40, 1, 0], [4, 1, 4]]
    cuts[1] = [38, 1, 2]

    expected = _logits(reference, prompts, cuts)
    difference = float((_logits(ours, prompts, cuts) - expected).abs().max())
    print(f"{family}: largest difference in logits {difference:.2g}")
    assert difference < TOLERANCE
    how = {"max_batch_tokens": 23, "stagger": 2}
    assert answers(ours, prompts, 24, **how) == answers(reference, prompts, 24, **how)


def test_shared_prefixes_and_preemption_change_nothing(tiny: str) -> None:
    runner = _load(tiny)
    start = random_prompts(VOCABULARY, (70,))[0]
    prompts = [start + tail for tail in random_prompts(VOCABULARY, (3, 5, 2, 9), seed=2)]
    alone = [answers(runner, [prompt], 45, prefix_cache=False)[0] for prompt in prompts]

    params = SamplingParams(temperature=0, max_tokens=45)
    sequences = [ask(runner, prompt, params)[0] for prompt in prompts]
    scheduler = drive(runner, sequences, num_blocks=7, stagger=3)

    assert [seq.token_ids[seq.prompt_len :] for seq in sequences] == alone
    assert any(seq.num_cached for seq in sequences)
    assert scheduler.num_preemptions > 0


@pytest.mark.parametrize("name", ["stories260k/hf", "babyllama-tok105/hf"])
def test_greedy_tokens_of_real_models_equal_the_torch_runners(
    name: str, data: Callable[[str], Path]
) -> None:
    folder = data(name)
    ours, reference = _load(folder), load(folder)
    prompts = random_prompts(reference.info.vocab_size, (30, 4, 11, 1, 50, 17))
    assert answers(ours, prompts, 100, stagger=2) == answers(reference, prompts, 100)


def _perplexity(runner: OpenVinoRunner, texts: list[list[int]]) -> float:
    loss, count = 0.0, 0
    for ids in texts:
        logits = _logits(runner, [ids[:-1]], [[len(ids) - 1]])
        targets = torch.tensor(ids[1:])
        loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return math.exp(loss / count)


def test_perplexity_of_quantized_weights(data: Callable[[str], Path]) -> None:
    """int8 within 1 %, int4 within 15 % of float32, with each arithmetic this CPU has."""
    folder = data("stories260k/hf")
    stories = json.loads((data("tinystories-1000") / "tinystories_1000.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.encode(story)[:500] for story in stories[:STORIES]]
    plain = _perplexity(_load(folder), texts)
    for quantization, limit in (("int8", 1.01), ("int4", 1.15)):
        for dtype in ("float32", "auto"):
            options = LoadOptions(quantization=quantization, dtype=dtype)  # type: ignore[arg-type]
            runner = _load(folder, options)
            ratio = _perplexity(runner, texts) / plain
            print(f"{quantization} {runner.info.dtype}: {ratio:.4f} x {plain:.3f}")
            assert 0.9 < ratio < limit


def test_eight_bit_keys_do_not_depend_on_how_a_prompt_is_cut() -> None:
    runner = _load(BUNDLED, kv_dtype="u8")
    prompts = random_prompts(runner.info.vocab_size, (75, 50))
    whole = _logits(runner, prompts, [[75], [50]])
    cut = _logits(runner, prompts, [[33, 31, 11], [1, 40, 9]])
    assert float((whole - cut).abs().max()) < 0.35
    exact = _logits(_load(BUNDLED), prompts, [[75], [50]])
    assert 0 < float((whole - exact).abs().max()) < 1


@pytest.mark.parametrize("kv_dtype", ["auto", "u8"])
def test_a_block_that_fits_in_part_is_copied_and_changes_nothing(kv_dtype: str, tiny: str) -> None:
    runner = _load(tiny, kv_dtype=kv_dtype)
    whole, other = random_prompts(VOCABULARY, (64, 20))
    prompts = [whole, whole, whole[:50] + other]
    alone = [answers(runner, [prompt], 20, prefix_cache=False)[0] for prompt in prompts]
    params = SamplingParams(temperature=0, max_tokens=20)
    sequences = [ask(runner, prompt, params)[0] for prompt in prompts]
    drive(runner, sequences, stagger=3)
    assert [seq.token_ids[seq.prompt_len :] for seq in sequences] == alone
    assert [seq.num_cached for seq in sequences] == [0, 63, 50]


def test_threads_change_speed_not_tokens(tiny: str) -> None:
    runner = _load(tiny)
    prompts = random_prompts(VOCABULARY, (9, 30))
    expected = answers(runner, prompts, 12)
    runner.use_threads(ThreadPlan((1, 2), (1, 2)))
    assert answers(runner, prompts, 12) == expected


def test_graphs_for_other_numbers_of_threads_share_their_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[GraphOptions] = []

    def count(constants: Constants, options: GraphOptions) -> Any:
        built.append(options)
        return build_graph(constants, options)

    monkeypatch.setattr("greenllm.runner.openvino.decoders.build_graph", count)
    factory = DecoderFactory(_weights(tmp_path, bits=32), choose_precision(32, "float32", "auto"))
    factory.allocate(4)
    for threads in (1, 2, 3):
        factory.compile(threads)
    assert len(built) == 1
    for groups in ({"qkv"}, {"qkv"}, {"qkv", "out"}, {"qkv", "out"}):
        factory.compile(1, frozenset(groups))
    factory.compile(2)
    assert [sorted(options.lora_groups) for options in built] == [[], ["qkv"], ["out", "qkv"]]


def test_a_second_start_reads_quantized_weights_from_disk(tmp_path: Path) -> None:
    options = LoadOptions(quantization="int4")
    first = _load(BUNDLED, options, weights_dir=tmp_path)
    (file,) = (tmp_path / "weights").iterdir()
    written = file.read_bytes()
    second = _load(BUNDLED, options, weights_dir=tmp_path)
    assert second.info.weight_bytes == first.info.weight_bytes > 0
    assert file.read_bytes() == written
    weights = _weights(tmp_path, bits=4)
    weights.head()
    assert weights.was_cached
    _load(BUNDLED, LoadOptions(quantization="int8"), weights_dir=tmp_path)
    assert len(list((tmp_path / "weights").iterdir())) == 2


def test_another_recipe_does_not_read_what_this_one_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {bits: cache_file(tmp_path, "digest", bits) for bits in (4, 8)}
    monkeypatch.setattr(quantize, "GROUPS", (32,))
    assert cache_file(tmp_path, "digest", 4) != before[4]
    assert cache_file(tmp_path, "digest", 8) == before[8]


def _weights(cache_dir: Path, bits: Any) -> DecoderWeights:
    from greenllm.model.options import BUNDLED_PATH

    config = json.loads((BUNDLED_PATH / "config.json").read_text())
    return DecoderWeights(spec_of(config), BUNDLED_PATH, bits=bits, cache_dir=cache_dir)


def test_a_damaged_cache_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = LoadOptions(quantization="int8")
    expected = answers(_load(BUNDLED, options, weights_dir=tmp_path), [[5, 6, 7]], 8)
    (file,) = (tmp_path / "weights").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert answers(_load(BUNDLED, options, weights_dir=tmp_path), [[5, 6, 7]], 8) == expected
    assert "cannot be read" in caplog.text


def _folder(tmp_path: Path, seed: int = 0, **changes: Any) -> Path:
    folder = Path(save(transformers.LlamaConfig(**BASE), tmp_path, seed))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gemma"}, "model type 'gemma'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "a part (0.5)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized"),
        ({"transformers_weights": "own.safetensors"}, "weight files of its own"),
        ({"architectures": ["LlamaModel"]}, "not a causal language model"),
    ],
)
def test_what_the_graph_would_get_wrong_is_named(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UnknownArchitectureError) as refusal:
        _load(_folder(tmp_path, **changes))
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"intermediate_size": 96}, "gate_proj.weight is (128, 64), config.json says (96, 64)"),
        ({"num_hidden_layers": 4}, "the weights lack model.layers.3."),
        ({"hidden_size": "wide"}, "config.json lacks or garbles"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(LoadError) as refusal:
        _load(_folder(tmp_path, **changes))
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "kv_dtype", "says"),
    [
        (LoadOptions(dtype="float16"), "auto", "--dtype float16"),
        (LoadOptions(dtype="float32"), "bfloat16", "--kv-dtype bfloat16"),
        (LoadOptions(max_context=100_000), "auto", "--max-context 100000"),
    ],
)
def test_options_that_contradict_are_refused(
    options: LoadOptions, kv_dtype: Any, says: str
) -> None:
    with pytest.raises(LoadError) as refusal:
        _load(BUNDLED, options, kv_dtype=kv_dtype)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("family", "absent"),
    [
        ("qwen2", "model.layers.1.self_attn.k_proj.bias"),
        ("llama-biased", "model.layers.2.self_attn.o_proj.bias"),
        ("llama-biased", "model.layers.0.mlp.up_proj.bias"),
        ("qwen3", "model.layers.1.self_attn.q_norm.weight"),
    ],
)
def test_what_the_config_calls_for_must_be_there(family: str, absent: str, tmp_path: Path) -> None:
    kind, settings = FAMILIES[family]
    folder = save(getattr(transformers, kind)(**settings), tmp_path)
    _change_tensors(tmp_path, {absent: lambda _: None})
    for runner in (_load, load):
        with pytest.raises(LoadError, match=re.escape(absent)):
            runner(folder)


def test_biases_that_the_config_does_not_call_for_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers does: a Qwen2 has biases on q, k and v only, a Llama none by default."""
    folder = _folder(tmp_path)
    prompts = random_prompts(VOCABULARY, (20, 7))
    expected = answers(load(folder), prompts, 12)
    extra = {
        f"model.layers.0.{module}.bias": torch.full((width,), 3.0)
        for module, width in (("self_attn.q_proj", 64), ("mlp.down_proj", 64))
    }
    tensors = load_file(folder / WEIGHTS) | extra
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    runner = _load(folder)
    assert answers(runner, prompts, 12) == answers(load(folder), prompts, 12) == expected
    assert "2 tensors, such as model.layers.0.mlp.down_proj.bias: ignored" in caplog.text
    assert runner.info.parameters == load(folder).info.parameters


def test_vectors_of_the_wrong_length_are_refused(tmp_path: Path) -> None:
    """One number would be spread over all."""
    folder = _folder(tmp_path)
    _change_tensors(folder, {"model.norm.weight": lambda norm: norm[:1].clone()})
    with pytest.raises(LoadError, match=r"model.norm.weight is \(1,\), config.json says \(64,\)"):
        _load(folder)


def test_the_runners_read_the_same_one_of_two_checkpoints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A leftover index and shard of other weights, beside `model.safetensors`."""
    folder = _folder(tmp_path)
    expected = answers(_load(folder), [[5, 6, 7]], 8)
    other = load_file(_folder(tmp_path / "other", seed=1) / WEIGHTS)
    save_file(other, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    names = dict.fromkeys(other, "model-00001-of-00001.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    for runner in (_load, load):
        caplog.clear()
        assert answers(runner(folder), [[5, 6, 7]], 8) == expected
        assert "the index is ignored" in caplog.text
    (folder / WEIGHTS).unlink()
    assert answers(_load(folder), [[5, 6, 7]], 8) == answers(load(folder), [[5, 6, 7]], 8)
    assert answers(_load(folder), [[5, 6, 7]], 8) != expected


@pytest.mark.parametrize("ids", ["x", [2, "x"], {"a": 2}])
def test_end_tokens_that_are_none_are_refused(ids: Any, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is no token id"):
        _load(_folder(tmp_path, eos_token_id=ids))


def test_a_tied_config_with_another_head_is_left_to_torch(tmp_path: Path) -> None:
    folder = _folder(tmp_path, tie_word_embeddings=True)
    with pytest.raises(UnknownArchitectureError, match="ties its head"):
        _load(folder)


@pytest.mark.parametrize(
    ("family", "changes", "windows"),
    [
        ("llama", {"sliding_window": 7}, (0, 0, 0)),
        ("mistral", {}, (4096, 4096, 4096)),
        ("mistral", {"sliding_window": None}, (0, 0, 0)),
        ("phi3", {}, (0, 0, 0)),
        ("phi3", {"sliding_window": 9}, (9, 9, 9)),
        ("qwen2", {"sliding_window": 9}, (0, 0, 0)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9}, (0, 0, 0)),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 2}, (0, 0, 4096)),
    ],
)
def test_windows_follow_each_familys_rules(
    family: str, changes: dict[str, Any], windows: tuple[int, ...]
) -> None:
    assert spec_of(BASE | {"model_type": family} | changes).windows == windows


def test_windows_that_contradict_are_refused() -> None:
    config = BASE | {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 3}
    with pytest.raises(UnknownArchitectureError, match="contradict"):
        spec_of(config)
