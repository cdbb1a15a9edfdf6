"""Profiles of real modules: FLOPs against PyTorch's counter, sums that add up, stored bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, MistralConfig, MixtralConfig, OPTConfig

from evals.commands.profile import profile as run
from evals.profiling import profiler
from evals.profiling.config import ProfileConfig
from evals.profiling.energy import Patience
from evals.profiling.observation import count, flops_by_module
from evals.profiling.parts import ProfileError, find_parts
from evals.profiling.profile import Counts, Profile, by_kind
from evals.profiling.profiler import profile
from evals.profiling.step import Step
from evals.profiling.timing import time_step
from greenllm.config import ConfigError
from greenllm.energy.meters.protocol import NullMeter, Reading, ReplayMeter
from greenllm.model.loader import load_model
from greenllm.model.options import LoadOptions
from tests.model.driving import save

NO_WAIT = Patience(rest_s=0.0, least_s=0.0)
LAYERS, HIDDEN, MIDDLE, VOCABULARY = 2, 64, 128, 96
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}


def profiled(model: str, **options: Any) -> Profile:
    """A profile without a meter, of few rounds."""
    config = ProfileConfig(model=model, **{"rounds": 2, "threads": 1, **options})
    return profile(config, NullMeter(lambda: 0.0), NO_WAIT)


def sums(found: Profile) -> dict[str, Counts]:
    return {row.kind: row.counts for row in by_kind(found.rows)}


def test_flops_are_those_of_the_formulas(tiny: str) -> None:
    found = sums(profiled(tiny, batch=3, prompt_tokens=20))
    projections = 3 * 2 * HIDDEN * (2 * HIDDEN + 2 * HIDDEN // 2)
    assert found["attention"].flops == LAYERS * (projections + 3 * 4 * HIDDEN * 21)
    assert found["MLP"].flops == LAYERS * 3 * 2 * 3 * HIDDEN * MIDDLE
    assert found["head"].flops == 3 * 2 * HIDDEN * VOCABULARY


def test_bytes_are_those_of_the_tensors(tiny: str) -> None:
    found = sums(profiled(tiny, batch=3, prompt_tokens=20))
    assert found["MLP"].weight_bytes == LAYERS * 4 * 3 * HIDDEN * MIDDLE
    assert found["head"].weight_bytes == 4 * HIDDEN * VOCABULARY
    assert found["embedding"].weight_bytes == 4 * 3 * HIDDEN  # three rows of the table
    assert found["attention"].kv_bytes == LAYERS * 3 * (21 + 1) * 2 * HIDDEN // 2 * 4
    head = 4 * 3 * (HIDDEN + VOCABULARY)
    assert found["head"].activation_bytes == head
    assert found["rest"] == Counts()


def test_a_tied_head_reads_the_table_and_the_embedding_rows_of_it() -> None:
    found = sums(profiled("bundled", batch=2))
    assert found["head"].weight_bytes == 4 * 192 * 1024
    assert found["embedding"].weight_bytes == 4 * 192 * 2


def test_prompts_need_one_row_of_logits(tiny: str) -> None:
    found = sums(profiled(tiny, phase="prefill", batch=3, prompt_tokens=20))
    assert found["head"].flops == 3 * 2 * HIDDEN * VOCABULARY
    hidden_pairs = 20 * 19 // 2
    assert found["attention"].masked_flops == LAYERS * 3 * 4 * HIDDEN * hidden_pairs


def test_quantized_weights_have_fewer_bytes(tiny: str) -> None:
    plain, int8, nf4 = (sums(profiled(tiny, quantize=q)) for q in ("none", "int8", "nf4"))
    # Bytes of the weights, and a scale in float32 for each row.
    assert int8["MLP"].weight_bytes == LAYERS * (3 * HIDDEN * MIDDLE + 4 * (2 * MIDDLE + HIDDEN))
    for kind in ("attention", "MLP"):
        assert nf4[kind].weight_bytes < int8[kind].weight_bytes < plain[kind].weight_bytes / 3
        assert plain[kind].flops == int8[kind].flops == nf4[kind].flops
    assert plain["head"].weight_bytes == int8["head"].weight_bytes == nf4["head"].weight_bytes


def test_seconds_and_joules_add_up(tiny: str) -> None:
    records = [Reading(float(n), {"cpu": joules}) for n, joules in enumerate((0.0, 0.0, 30.0))]
    meter = ReplayMeter(records, idle_w={"cpu": 6.0})
    found = profile(ProfileConfig(model=tiny, rounds=8, threads=1), meter, NO_WAIT)
    assert found.energy.active_j == pytest.approx(24 / 8)
    assert sum(row.active_j or 0 for row in found.rows) == pytest.approx(24 / 8)
    assert all(row.time_s > 0 and row.active_j for row in found.rows)
    assert len(found.rows) == 1 + 3 * LAYERS + 2 + 1
    shares_of_time = [row.time_s / found.total.time_s for row in found.rows]
    assert [row.active_j for row in found.rows] == pytest.approx([3 * s for s in shares_of_time])


def test_without_a_meter_joules_are_none(tiny: str) -> None:
    found = profiled(tiny)
    assert found.energy.active_j is None
    assert {row.active_j for row in found.rows} == {None}


def test_every_tick_is_somewhere(tiny: str) -> None:
    # A clock that counts how often it is looked at: two looks for the step and for each module.
    ticks = iter(range(100_000))
    loaded = load_model(tiny, LoadOptions())
    parts = find_parts(loaded.model, LAYERS)
    step = Step(loaded.model, ProfileConfig(model=tiny))
    plain_s, (*parts_s, rest_s) = time_step(step, parts, 4, clock=lambda: float(next(ticks)))
    assert plain_s == 1
    modules = [len(part.modules) for part in parts]
    assert modules == [1, *[2, 1, 1] * LAYERS, 1, 1]  # two norms in each layer
    assert parts_s == list(map(float, modules))
    assert rest_s == 1 + sum(modules)
    left = [m for m in loaded.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert left == []


@pytest.mark.parametrize(("phase", "past"), [("decode", 20), ("prefill", 0)])
def test_steps_begin_where_the_first_began(tiny: str, phase: Any, past: int) -> None:
    loaded = load_model(tiny, LoadOptions())
    step = Step(loaded.model, ProfileConfig(model=tiny, phase=phase, prompt_tokens=20))
    parts = find_parts(loaded.model, LAYERS)
    first = count(parts, step, {})
    step.run()  # without going back
    assert step.past() == [past + 2 * (1 if past else 20)] * LAYERS
    assert count(parts, step, {}) == first


def test_windows_end_what_is_attended_to(tmp_path: Path) -> None:
    config = MistralConfig(**SMALL, intermediate_size=MIDDLE, sliding_window=16)
    folder = save(config, tmp_path)
    found = profiled(folder, prompt_tokens=40)
    projections = 2 * HIDDEN * (2 * HIDDEN + 2 * HIDDEN // 2)
    assert sums(found)["attention"].flops == LAYERS * (projections + 4 * HIDDEN * 16)


def test_layers_of_other_families_are_found(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=128, n_embd=HIDDEN, n_layer=LAYERS, n_head=4,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    found = profiled(save(config, tmp_path))
    assert sums(found)["MLP"].weight_bytes == LAYERS * 4 * (8 * HIDDEN * HIDDEN + 5 * HIDDEN)


def test_experts_are_refused(tmp_path: Path) -> None:
    config = MixtralConfig(**SMALL, intermediate_size=MIDDLE, num_local_experts=4)
    with pytest.raises(ProfileError, match="MixtralForCausalLM cannot be profiled"):
        profiled(save(config, tmp_path))


def test_matrices_beside_the_layers_are_refused(tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, ffn_dim=MIDDLE,
        num_attention_heads=4, word_embed_proj_dim=HIDDEN // 2, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    with pytest.raises(ProfileError, match=r"project_out\.weight is in none of its parts"):
        profiled(save(config, tmp_path))


def test_contexts_that_are_too_long_are_refused(tiny: str) -> None:
    profiled(tiny, phase="prefill", prompt_tokens=128)
    with pytest.raises(ConfigError, match="--prompt-tokens 128 is too long"):
        profiled(tiny, prompt_tokens=128)


def test_models_that_need_numbers_are_counted_themselves(tiny: str) -> None:
    config = ProfileConfig(model=tiny)
    model = load_model(tiny, LoadOptions()).model
    twin = load_model(tiny, LoadOptions()).model
    counted = flops_by_module(model, twin, config)
    twin.forward = lambda **given: torch.empty(1, device="meta").item()
    assert flops_by_module(model, twin, config) == counted


def test_threads_are_put_back(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def look(*given: Any, **named: Any) -> Any:
        seen.append(torch.get_num_threads())
        return load_model(*given, **named)

    monkeypatch.setattr(profiler, "load_model", look)
    found = profiled(tiny, threads=before + 1)
    assert seen == [before + 1]
    assert found.subject.threads == before + 1
    assert torch.get_num_threads() == before


def test_the_command_writes_what_it_prints(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
    recorded = tmp_path / "recorded"
    lines = [{"at_s": 0, "joules": {"cpu": joules}} for joules in (0, 0, 1, 1, 5)]
    recorded.write_text("\n".join(map(json.dumps, lines)))
    output = tmp_path / "found"
    run(ProfileConfig(model=tiny, rounds=2, threads=1, meter=f"replay:{recorded}", output=output))
    assert sorted(path.name for path in output.iterdir()) == [
        "profile.json", "profile.md", "profile.svg"
    ]  # fmt: skip
    page = (output / "profile.md").read_text()
    assert capsys.readouterr().out == page + "\n"
    found = json.loads((output / "profile.json").read_text())
    assert found["energy"]["method"] == "replay"
    joules = [part["active_j"] for part in found["parts"]]
    assert sum(joules) == pytest.approx(found["energy"]["active_j"])
