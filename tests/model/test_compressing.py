"""Tiny models made smaller for real: what is kept computes as before, and the rest is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune.bill.phases import PhaseAccount
from finetune.bill.report import Grams
from finetune.compressing.config import CompressConfig
from finetune.compressing.importance import Importance, importance_of
from finetune.compressing.making import Healer, batches, make, read_source, write
from finetune.compressing.prune import prune
from finetune.compressing.report import sizes_of
from greenllm.config import ConfigError
from greenllm.energy.carbon.grid import IntensityTable
from greenllm.energy.meters.modelled import modelled_meter
from tests.model.finetuning import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=4,
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, **options},
        initializer_range=0.2, greenllm_exit_layers=[2],
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def logits(one: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = one(input_ids=IDS).logits
    return found


def silence(one: Any, *, layer: int, head: int, channel: int) -> None:
    """Make parts of a model compute nothing."""
    with torch.no_grad():
        whole = one.model.layers[layer]
        whole.self_attn.o_proj.weight.zero_()
        whole.mlp.down_proj.weight.zero_()
        for other in one.model.layers:
            other.self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0
            other.mlp.down_proj.weight[:, channel] = 0


def test_what_computes_nothing_matters_least_and_is_not_missed() -> None:
    one = model()
    silence(one, layer=2, head=1, channel=5)
    # A head of the other group has to go too.
    with torch.no_grad():
        for layer in one.model.layers:
            layer.self_attn.o_proj.weight[:, 16:24] = 0
    found = importance_of(one, [IDS])
    assert found.layers.argmin() == 2
    assert found.layers[2] == pytest.approx(0, abs=1e-6)
    assert found.heads[0][1] == found.heads[0][2] == 0
    assert found.channels[0].argmin() == 5
    before = logits(one)
    prune(one, found, layers=3, heads=2, mlp_width=23)
    assert torch.allclose(logits(one), before, atol=1e-5)
    config = one.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (3, 2)
    assert (config.intermediate_size, config.head_dim) == (23, 8)
    assert not hasattr(config, "greenllm_exit_layers")


def test_a_pruned_model_is_a_normal_checkpoint(tmp_path: Path) -> None:
    one = model()
    prune(one, importance_of(one, [IDS]), layers=3, heads=2, mlp_width=16)
    one.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(again), logits(one), atol=1e-6)
    parameters, weight_bytes = sizes_of(str(tmp_path))
    assert parameters == one.num_parameters()
    assert 4 * parameters < weight_bytes < 4 * parameters + 10_000


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 5}, "--layers 5: the model has 4"),
        ({"heads": 3}, "--heads 3 must be a multiple of the 2 key-value heads"),
        ({"mlp_width": 25}, "--mlp-width 25: the model has 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    one = model()
    nothing = Importance(torch.ones(4), (torch.ones(4),) * 4, (torch.ones(24),) * 4)
    with pytest.raises(ConfigError, match=message):
        prune(one, nothing, **sizes)


def test_heads_that_transformers_would_not_write_are_refused() -> None:
    one = model(num_key_value_heads=1)
    with pytest.raises(ConfigError, match=r"do not go together: .*32.*3"):
        prune(one, importance_of(one, [IDS]), heads=3)
    assert one.config.num_attention_heads == 4, "nothing was cut"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the bundled tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def options(tiny: Path, output: Path, **more: Any) -> CompressConfig:
    given: dict[str, Any] = {"examples": 200, "device": "cpu", "threads": 1}
    if more.get("heal") != "none":
        given |= {"steps": 12, "batch_size": 4}
    return CompressConfig(model=str(tiny), output=output, **{**given, **more})


@pytest.mark.parametrize(
    "more",
    [
        {"layers": 1, "mlp_width": 64},
        {"layers": 1, "heal": "full"},
        {"method": "student", "hidden_size": 32, "mlp_width": 64},
        {"layers": 1, "heal": "none"},
    ],
)
def test_what_was_left_learns_and_is_written_whole(
    tiny: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    config = options(tiny, tmp_path / "out", **more)
    account, work = PhaseAccount(modelled_meter()), tmp_path / "work"
    work.mkdir()
    source = read_source(config, work)
    raw, facts = make(config, source, work, lambda text: None)
    grams = Grams(IntensityTable.load().lookup("WORLD"), 1.0, None)
    healer = Healer(config, account, grams, lambda now: None, lambda text: None)
    found, report = healer.heal(raw, source.recipe.data or "", work)
    write(found, source, work, config.folder)
    assert (report is None) == (config.heal == "none")
    if report is not None:
        assert report["quality"]["validation_loss_change"]["high"] < 0
        assert account.spent("training", "teacher").total_j > 0
    made = AutoModelForCausalLM.from_pretrained(config.folder)
    written = json.loads((config.folder / "config.json").read_text())
    assert written["num_hidden_layers"] == (config.layers or 2)
    assert made.config.hidden_size == (config.hidden_size or 64)
    assert (config.folder / "tokenizer.json").exists()
    raw_weights, weights = (load_file(f / "model.safetensors") for f in (raw, config.folder))
    changed = any(not torch.equal(raw_weights[name], weights[name]) for name in weights)
    assert changed == (report is not None)
    assert ("layer_importance" in facts) == (config.method == "prune")


def test_a_model_in_half_precision_stays_in_it(tiny: Path, tmp_path: Path) -> None:
    half = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path / "half" / name)
    config = options(tmp_path / "half", tmp_path / "out", layers=1, heal="none")
    source = read_source(config, tmp_path)
    raw, _ = make(config, source, tmp_path, lambda text: None)
    write(raw, source, tmp_path, config.folder)
    tensors = load_file(config.folder / "model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    parameters, weight_bytes = sizes_of(str(config.folder))
    assert 2 * parameters < weight_bytes < 2 * parameters + 10_000


def test_what_matters_is_found_on_examples_of_all_lengths(tiny: Path, tmp_path: Path) -> None:
    source = read_source(options(tiny, tmp_path / "out", layers=1), tmp_path)
    widths = [ids.shape[1] for ids in batches(source)]
    lengths = sorted(len(item.ids) for item in source.data.train)
    assert len(widths) == 8
    assert widths[0] == lengths[0]
    assert widths[-1] > 0.6 * lengths[-1]
