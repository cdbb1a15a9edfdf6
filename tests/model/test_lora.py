"""Adapters are read as PEFT saves them, with their scaling; all else is refused by reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from greenllm.model.lora import read_lora
from greenllm.model.lora_config import CONFIG_NAME, WEIGHTS_NAME, AdapterError
from greenllm.model.lora_layout import inspect_lora
from greenllm.model.options import LoadOptions
from greenllm.model.targets import targets_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
Targets = Mapping[str, tuple[int, int]]
Change = Callable[[Path], object]
MakeAdapter = Callable[..., Path]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def targets(tiny: str) -> Targets:
    return targets_of(tiny, LoadOptions())


@pytest.fixture(scope="module")
def good(tiny: str, tmp_path_factory: pytest.TempPathFactory, make_adapter: MakeAdapter) -> Path:
    return make_adapter(tiny, tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}},
        {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 6}, "use_rslora": True},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_each_module_adds_what_peft_would_merge(
    tiny: str,
    targets: Targets,
    tmp_path: Path,
    make_adapter: MakeAdapter,
    options: dict[str, Any],
) -> None:
    folder = make_adapter(tiny, tmp_path, **options)
    weights = read_lora(folder, targets)
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
    assert len(weights.layers) == 4
    for path, (a, b) in weights.layers.items():
        expected = model.base_model.model.get_submodule(path).get_delta_weight("default")
        torch.testing.assert_close(b @ a, expected, rtol=1e-5, atol=1e-6)


def test_the_figures_of_an_adapter(good: Path, targets: Targets) -> None:
    weights, facts = read_lora(good, targets), inspect_lora(good)
    numbers = sum(a.numel() + b.numel() for a, b in weights.layers.values())
    assert weights.num_parameters == facts.num_parameters == numbers
    assert weights.num_bytes == facts.num_bytes == 4 * numbers
    assert weights.rank == facts.rank == 4
    assert facts.targets == ("down_proj", "q_proj")


def test_the_digest_names_the_content(good: Path, targets: Targets, tmp_path: Path) -> None:
    first = read_lora(good, targets).digest
    copied = Path(shutil.copytree(good, tmp_path / "copy"))
    assert read_lora(copied, targets).digest == first
    edit_tensors(lambda tensors: tensors[f"{Q0}.lora_B.weight"].add_(1))(copied)
    changed = read_lora(copied, targets).digest
    edit_config(lora_alpha=9)(copied)
    assert len({first, changed, read_lora(copied, targets).digest}) == 3


def test_ranks_are_read_in_half_precision_too(good: Path, targets: Targets, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(good, tmp_path / "copy"))
    tensors = {key: t.bfloat16() for key, t in load_file(copied / WEIGHTS_NAME).items()}
    save_file(tensors, copied / WEIGHTS_NAME)
    assert {t.dtype for pair in read_lora(copied, targets).layers.values() for t in pair} == {
        torch.float32
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_read_is_finite_in_every_type_of_a_runner(
    good: Path, targets: Targets, tmp_path: Path, dtype: torch.dtype
) -> None:
    copied = Path(shutil.copytree(good, tmp_path / "copy"))
    put("lora_B", torch.full((64, 4), 32_752.0))(copied)
    pairs = read_lora(copied, targets).layers.values()
    assert max(float(b.max()) for _, b in pairs) == torch.finfo(torch.float16).max
    assert all(bool(t.to(dtype).isfinite().all()) for pair in pairs for t in pair)


def edit_config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / CONFIG_NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_NAME)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS_NAME)

    return change


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def grow(name: str, size: int) -> Change:
    """A file of any size that takes no room on the disk."""

    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(size)

    return change


def to_pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def to_pickle(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / "adapter_model.bin")


def add(name: str, *shape: int) -> Change:
    return edit_tensors(lambda tensors: tensors.update({name: torch.ones(*shape)}))


def put(name: str, tensor: torch.Tensor) -> Change:
    return edit_tensors(lambda tensors: tensors.update({f"{Q0}.{name}.weight": tensor}))


BAD: dict[str, tuple[Change, str]] = {
    "no config": (remove(CONFIG_NAME), "has no adapter_config.json"),
    "config is no JSON": (write(CONFIG_NAME, b"{"), "is not valid JSON"),
    "config is deep": (write(CONFIG_NAME, b"[" * 100_000), "is not valid JSON"),
    "config is not UTF-8": (write(CONFIG_NAME, b"\xff"), "is not valid JSON"),
    "config is a list": (write(CONFIG_NAME, b"[]"), "holds no JSON object"),
    "another method": (edit_config(peft_type="IA3"), "peft_type is 'IA3'"),
    "no rank": (edit_config(r=None), "r must be a whole number"),
    "rank is true": (edit_config(r=True), "r must be a whole number"),
    "rank too large": (edit_config(r=257), r"must be a whole number in \[1, 256\]"),
    "rank 0": (edit_config(r=0), r"must be a whole number in \[1, 256\]"),
    "alpha is text": (edit_config(lora_alpha="8"), "lora_alpha must be a finite number"),
    "alpha is infinite": (edit_config(lora_alpha=float("inf")), "must be a finite number"),
    "rslora is text": (edit_config(use_rslora="yes"), "use_rslora must be true or false"),
    "pattern is a list": (edit_config(rank_pattern=[1]), "rank_pattern must be an object"),
    "pattern is no pattern": (edit_config(rank_pattern={"(": 1}), "is no pattern"),
    "pattern without end": (
        edit_config(alpha_pattern={"([a-z0-9_.]+)+!": 1}),
        r"alpha_pattern: '\(\[a-z0-9_.\]\+\)\+!' is no pattern that is searched here",
    ),
    "long pattern": (edit_config(rank_pattern={"q" * 9999: 1}), "is no pattern"),
    "many patterns": (
        edit_config(rank_pattern={f"{i}.*q_proj": 1 for i in range(65)}),
        "rank_pattern may hold 64 expressions",
    ),
    "config is a pipe": (to_pipe(CONFIG_NAME), "cannot read .*: not a regular file"),
    "config is large": (grow(CONFIG_NAME, 2**40), "cannot read .*: larger than 4194304 bytes"),
    "weights are a pipe": (to_pipe(WEIGHTS_NAME), "has no adapter_model.safetensors"),
    "weights are large": (grow(WEIGHTS_NAME, 2**40), "cannot read .*adapter_model"),
    "large header": (
        write(WEIGHTS_NAME, (2**25).to_bytes(8, "little") + b" " * 2**25),
        "its header has 33554432 bytes, at most 16777216",
    ),
    "long name": (add("base_model.model." + "x" * 600, 4), "is no tensor's name: 617 characters"),
    "pattern of text": (edit_config(alpha_pattern={"q": "x"}), r"alpha_pattern\['q'\] must be"),
    "dora": (edit_config(use_dora=True), "use_dora .*greenllm adapters merge"),
    "bias": (edit_config(bias="all"), "bias is 'all'.*greenllm adapters merge"),
    "modules to save": (edit_config(modules_to_save=["lm_head"]), "modules_to_save .*merge"),
    "trainable tokens": (edit_config(trainable_token_indices=[1]), "trainable_token_indices"),
    "another start": (edit_config(init_lora_weights="pissa"), "'pissa' changes the base"),
    "unknown option": (edit_config(use_tomorrows_trick=True), "use_tomorrows_trick is not"),
    "pickle": (to_pickle, "pickled weights, which can run code"),
    "no weights": (remove(WEIGHTS_NAME), "has no adapter_model.safetensors"),
    "broken weights": (write(WEIGHTS_NAME, b"x" * 99), "cannot read .*adapter_model"),
    "cut weights": (write(WEIGHTS_NAME, b""), "cannot read .*adapter_model"),
    "empty": (edit_tensors(lambda tensors: tensors.clear()), "holds no tensors"),
    "no B": (
        edit_tensors(lambda tensors: tensors.pop(f"{Q0}.lora_B.weight")),
        "layers.0.self_attn.q_proj has no lora_B",
    ),
    "no A": (
        edit_tensors(lambda tensors: tensors.pop(f"{Q0}.lora_A.weight")),
        "layers.0.self_attn.q_proj has no lora_A",
    ),
    "rank is not the config's": (put("lora_A", torch.ones(3, 64)), "config says rank 4"),
    "A has one dimension": (put("lora_A", torch.ones(4)), "config says rank 4"),
    "A too narrow": (put("lora_A", torch.ones(4, 32)), "maps 32 features to 64"),
    "B too long": (put("lora_B", torch.ones(65, 4)), "maps 64 features to 65"),
    "not a number": (put("lora_B", torch.full((64, 4), torch.nan)), "not finite"),
    "infinite": (put("lora_A", torch.full((4, 64), torch.inf)), "not finite"),
    "integers": (put("lora_A", torch.ones(4, 64, dtype=torch.int8)), "int8"),
    "A beyond bfloat16": (put("lora_A", torch.full((4, 64), 3.4e38)), "A.weight holds 3.4e.38"),
    "B beyond float16": (put("lora_B", torch.full((64, 4), 4e4)), "scaled by 2, holds 8e.04"),
    "scaled beyond all": (put("lora_B", torch.full((64, 4), 3e38)), "holds inf, beyond the range"),
    "head": (add("base_model.model.lm_head.lora_A.weight", 4, 64), "embedding or head"),
    "embedding": (add("base_model.model.model.embed_tokens.lora_embedding_A", 4, 9), "embedding"),
    "magnitudes": (add(f"{Q0}.lora_magnitude_vector", 64), "no part of a plain LoRA adapter"),
    "another base": (
        add("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", 4, 64),
        "is for another base .*adapts model.layers.7.self_attn.q_proj, the served model has 14",
    ),
}


VALUES = (
    "not a number",
    "infinite",
    "integers",
    "A beyond bfloat16",
    "B beyond float16",
    "scaled beyond all",
)


@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_refused_by_reason(
    name: str, good: Path, targets: Targets, tmp_path: Path
) -> None:
    change, message = BAD[name]
    folder = Path(shutil.copytree(good, tmp_path / "bad"))
    change(folder)
    with pytest.raises(AdapterError, match=message) as caught:
        read_lora(folder, targets)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", sorted(name for name in BAD if name not in VALUES))
def test_the_header_alone_shows_all_but_values(
    name: str, good: Path, targets: Targets, tmp_path: Path
) -> None:
    change, message = BAD[name]
    folder = Path(shutil.copytree(good, tmp_path / "bad"))
    change(folder)
    with pytest.raises(AdapterError, match=message):
        inspect_lora(folder, targets)


def test_a_dora_adapter_of_peft_is_refused(
    tiny: str, targets: Targets, tmp_path: Path, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter(tiny, tmp_path, use_dora=True)
    with pytest.raises(AdapterError, match="greenllm adapters merge"):
        read_lora(folder, targets)
