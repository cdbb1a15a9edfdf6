"""The engine's greedy tokens are those of `generate`, for every family of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from greenllm.core import SamplingParams
from greenllm.model.info import LoadError
from greenllm.model.options import LoadOptions
from tests.model.driving import (
    GPT2,
    LLAMA,
    VOCABULARY,
    answers,
    ask,
    drive,
    generate,
    load,
    random_prompts,
    save,
)

LENGTHS = (5, 13, 21, 1)
MAX_TOKENS = 24
WINDOW = 7
EXPERTS = {"num_experts_per_tok": 2}
GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": WINDOW,
    "tie_word_embeddings": False,
    "layer_types": ["sliding_attention", "full_attention"],
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "llama-tied": ("LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 16}),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": WINDOW}),
    "gemma": ("GemmaConfig", LLAMA | {"head_dim": 16}),
    "gemma2": ("Gemma2Config", LLAMA | GEMMA | {"attn_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", LLAMA | GEMMA | {"initializer_range": 0.3}),
    "phi": ("PhiConfig", LLAMA),
    "phi3": ("Phi3Config", LLAMA),
    "gpt2": ("GPT2Config", GPT2),
    "gpt-neox": ("GPTNeoXConfig", {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}),
    "olmo2": ("Olmo2Config", LLAMA),
    "stablelm": ("StableLmConfig", LLAMA),
    "cohere2": ("Cohere2Config", LLAMA | {"sliding_window": WINDOW}),
    "mixtral": ("MixtralConfig", LLAMA | EXPERTS | {"num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        LLAMA
        | EXPERTS
        | {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        LLAMA
        | EXPERTS
        | {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 24,
        },
    ),
}


def _config(kind: str, settings: dict[str, Any]) -> Any:
    return getattr(transformers, kind)(**settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_those_of_generate(family: str, tmp_path: Path) -> None:
    """Chunked prompts, staggered arrivals and a pool so small that sequences are preempted."""
    folder = save(_config(*FAMILIES[family]), tmp_path)
    runner = load(folder)
    prompts = random_prompts(VOCABULARY, LENGTHS)
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    sequences = [ask(runner, prompt, params)[0] for prompt in prompts]

    scheduler = drive(runner, sequences, max_batch_tokens=9, num_blocks=20, stagger=2)

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = generate(model, prompts, MAX_TOKENS)
    assert [seq.token_ids[seq.prompt_len :] for seq in sequences] == expected
    assert all(len(answer) == MAX_TOKENS and len(set(answer)) > 4 for answer in expected)
    assert scheduler.num_preemptions > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_side_by_side_give_the_same_tokens(family: str, tmp_path: Path) -> None:
    """Several chunks a step, of several sizes, some of them not the first of their prompt."""
    runner = load(save(_config(*FAMILIES[family]), tmp_path))
    prompts = random_prompts(VOCABULARY, (*LENGTHS, 30, 14, 9))
    assert not runner.prompts_side_by_side
    expected = answers(runner, prompts, MAX_TOKENS, max_batch_tokens=40)
    runner.prompts_side_by_side = True
    assert answers(runner, prompts, MAX_TOKENS, max_batch_tokens=40) == expected


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "cohere2"])
def test_the_window_matters(family: str, tmp_path: Path) -> None:
    """Otherwise the test above would not see a runner that ignores it."""
    kind, settings = FAMILIES[family]
    narrow = save(_config(kind, settings), tmp_path / "narrow")
    wide = save(_config(kind, settings | {"sliding_window": 128}), tmp_path / "wide")
    prompts = random_prompts(VOCABULARY, LENGTHS)
    assert answers(load(narrow), prompts, 8) != answers(load(wide), prompts, 8)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "falcon": (
        "FalconConfig",
        {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "attention interface",
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4},
        "0 of 2 layers",
    ),
    "mpt": (
        "MptConfig",
        {"vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4},
        "cannot run MptForCausalLM",
    ),
    "mamba": (
        "MambaConfig",
        {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2},
        "recurrent",
    ),
    "falcon-h1": (
        "FalconH1Config",
        LLAMA
        | {
            "head_dim": 16,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
        },
        "recurrent",
    ),
    "gpt-oss": (
        "GptOssConfig",
        LLAMA | EXPERTS | {"head_dim": 16, "num_local_experts": 4},
        "s_aux",
    ),
    "diffllama": ("DiffLlamaConfig", LLAMA, "attends more than once"),
    "phimoe": (
        "PhimoeConfig",
        LLAMA | EXPERTS | {"num_local_experts": 4, "sliding_window": WINDOW},
        "--max-context 7",
    ),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        FAMILIES["qwen2-moe"][1]
        | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
        "--max-context 7",
    ),
    "llama4": (
        "Llama4TextConfig",
        LLAMA
        | {
            "head_dim": 16,
            "intermediate_size_mlp": 128,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": WINDOW,
        },
        "--max-context 7",
    ),
}


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_would_be_computed_wrongly_are_refused(family: str, tmp_path: Path) -> None:
    kind, settings, reason = REFUSED[family]
    folder = save(_config(kind, settings), tmp_path)
    with pytest.raises(LoadError, match=reason) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_hidden_window_is_harmless_in_a_shorter_context(tmp_path: Path) -> None:
    kind, settings, _ = REFUSED["phimoe"]
    folder = save(_config(kind, settings | {"sliding_window": 32}), tmp_path)
    runner = load(folder, LoadOptions(max_context=32))
    prompts = random_prompts(VOCABULARY, (5, 12))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert runner.info.context_length == 32
    assert answers(runner, prompts, 16) == generate(model, prompts, 16)


def test_sizes_are_those_of_the_model(tmp_path: Path) -> None:
    """The shape prices a token: body and head without the table, keys and values per token."""
    for tied in (False, True):
        kind, settings = FAMILIES["llama"]
        config = _config(kind, settings | {"tie_word_embeddings": tied})
        runner = load(save(config, tmp_path / str(tied)))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / str(tied)))
        total = sum(parameter.numel() for parameter in model.parameters())
        table = VOCABULARY * 64
        assert runner.info.parameters == total
        assert runner.info.weight_bytes >= total * 4
        assert runner.shape.head_parameters == table
        assert runner.shape.body_parameters == total - (table if tied else 2 * table)
        assert runner.shape.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
        assert runner.shape.num_layers == 2
        assert runner.shape.attention_width == 64
