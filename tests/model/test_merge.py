"""Merged checkpoints are the base with its adapter; the store holds whole, checked adapters."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import greenllm
from greenllm.cli.app import app
from greenllm.model.adapter_store import discard, list_stored, store
from greenllm.model.info import LoadError
from greenllm.model.lora_config import CONFIG_NAME, WEIGHTS_NAME, AdapterError
from greenllm.model.merge import merge
from greenllm.model.options import LoadOptions
from greenllm.model.quiet import hush_bitsandbytes
from greenllm.model.targets import targets_of
from tests.model.driving import save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
MakeAdapter = Callable[..., Path]
BASE = str(Path(greenllm.__file__).parent / "model" / "bundled")
TEXT = torch.arange(10, 40)[None]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "saved": {"modules_to_save": ["norm"]},
    "head": {"modules_to_save": ["lm_head"]},
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TEXT).logits
    return found


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, make_adapter: MakeAdapter) -> Path:
    return make_adapter(BASE, tmp_path_factory.mktemp("adapter") / "fox")


@pytest.mark.parametrize("kind", ["plain", "dora", "rslora"])
def test_a_merged_checkpoint_computes_what_peft_does(
    kind: str, tmp_path: Path, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter(BASE, tmp_path / "adapter", **KINDS[kind])
    sizes = merge(folder, "bundled", tmp_path / "made" / "merged", LoadOptions())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "made" / "merged")
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    plain = logits(base)
    expected = logits(PeftModel.from_pretrained(base, folder))
    # The sum is rounded to the checkpoint's precision.
    error = (logits(merged.float()) - expected).abs().max()
    assert error < 0.05 * (plain - expected).abs().max()
    assert (tmp_path / "made" / "merged" / "tokenizer.json").is_file()
    assert sizes.merged_bytes > sizes.adapter_bytes > 0
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["merged"]


def test_an_output_that_exists_is_left_alone(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="exists"):
        merge(adapter, BASE, tmp_path, LoadOptions())
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_not_merged(adapter: Path, tmp_path: Path, tiny: str) -> None:
    """Another width, fewer layers (PEFT would pass over the rest), no base, no weights."""
    shallow = AutoModelForCausalLM.from_pretrained(BASE).config
    shallow.num_hidden_layers -= 1
    folder = save(shallow, tmp_path / "shallow")
    output = tmp_path / "out"
    with pytest.raises(AdapterError, match="cannot merge"):
        merge(adapter, tiny, output, LoadOptions())
    with pytest.raises(AdapterError, match="for another base than"):
        merge(adapter, folder, output, LoadOptions())
    with pytest.raises(LoadError):
        merge(adapter, str(tmp_path / "nowhere"), output, LoadOptions())
    with pytest.raises(AdapterError, match="has no adapter_model"):
        merge(tmp_path, BASE, output, LoadOptions())
    assert not output.exists()


def test_weights_the_file_lacks_are_not_made_up(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "fox"))
    config = (folder / CONFIG_NAME).read_text().replace('"q_proj"', '"q_proj", "k_proj"')
    (folder / CONFIG_NAME).write_text(config)
    with pytest.raises(AdapterError, match="missing adapter keys"):
        merge(folder, BASE, tmp_path / "out", LoadOptions())


def test_the_store_holds_checked_copies(adapter: Path, tmp_path: Path, tiny: str) -> None:
    home = tmp_path / "data" / "adapters"
    weights = store(home, "fox", adapter, targets_of("bundled", LoadOptions()))
    assert sorted(path.name for path in (home / "fox").iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    (found,) = list_stored(home)
    assert found.facts is not None
    assert (found.name, found.facts.rank, found.problem) == ("fox", 4, "")
    assert weights.num_parameters == found.facts.num_parameters
    with pytest.raises(AdapterError, match="exists"):
        store(home, "fox", adapter)
    with pytest.raises(AdapterError, match="another base"):
        store(home, "owl", adapter, targets_of(tiny, LoadOptions()))
    with pytest.raises(AdapterError, match="no name"):
        store(home, "../owl", adapter)
    assert [path.name for path in home.parent.iterdir()] == ["adapters"]
    discard(home, "fox")
    with pytest.raises(AdapterError, match="there is no adapter 'fox'"):
        discard(home, "fox")
    with pytest.raises(AdapterError, match="no name"):
        discard(home, "..")
    assert list_stored(home) == []


def test_the_commands(adapter: Path, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(
            app, ["adapters", *words, "--data-dir", str(tmp_path)], env={"COLUMNS": "200"}
        )
        if done.exception:
            raise done.exception
        return done.output

    stored = tmp_path / "adapters"
    assert "no adapters in" in run("list")
    with pytest.raises(AdapterError, match="'bundled' is the name of the base model"):
        run("add", "bundled", str(adapter), "--model", "bundled")
    with pytest.raises(AdapterError, match=r"no adapter or folder 'nope'; `greenllm adapters lis"):
        run("merge", "nope", "--model", "bundled", "--output", str(tmp_path / "full"))
    assert "fits bundled" in run("add", "fox", str(adapter), "--model", "bundled")
    added = run("add", "owl", str(adapter))
    assert "was not checked" in added
    for body in ({"lora_name": "owl"}, {"lora_name": "owl", "lora_path": str(stored / "owl")}):
        assert f"-d '{json.dumps(body)}'" in added
    (tmp_path / "adapters" / "owl" / CONFIG_NAME).write_text("{")
    listed = run("list")
    assert "down_proj, q_proj" in listed
    assert "owl cannot be used" in listed
    assert "MB of weights" in run(
        "merge", "fox", "--model", "bundled", "--output", str(tmp_path / "full")
    )
    run("remove", "fox")
    with pytest.raises(AdapterError, match="no adapter 'fox'"):
        run("remove", "fox")


def test_a_base_in_a_folder_has_the_folders_name(adapter: Path, tmp_path: Path) -> None:
    words = ["adapters", "add", "bundled", str(adapter), "--model", BASE]
    done = CliRunner().invoke(app, [*words, "--data-dir", str(tmp_path)])
    assert isinstance(done.exception, AdapterError)
    assert not (tmp_path / "adapters").exists()


def test_merging_prints_what_was_made_and_nothing_else(adapter: Path, tmp_path: Path) -> None:
    words = ["merge", str(adapter), "--model", "bundled", "--output", str(tmp_path / "full")]
    done = subprocess.run(
        [sys.executable, "-m", "greenllm", "adapters", *words, "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


def test_one_warning_of_bitsandbytes_is_dropped_and_others_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hush_bitsandbytes()
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no kernels")
    log.warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]


def test_what_is_merged_need_not_be_servable(tmp_path: Path, make_adapter: MakeAdapter) -> None:
    """An adapter the server refuses, because it saves a whole module."""
    folder = make_adapter(BASE, tmp_path / "adapter", **KINDS["saved"])
    with pytest.raises(AdapterError, match="modules_to_save"):
        store(tmp_path / "adapters", "fox", folder)
    assert merge(folder, "bundled", tmp_path / "merged", LoadOptions()).merged_bytes > 0


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_head_of_its_own_is_not_merged_into_a_tied_base(
    tmp_path: Path, make_adapter: MakeAdapter
) -> None:
    """The checkpoint would lose it: heads and embeddings are one tensor there."""
    folder = make_adapter(BASE, tmp_path / "adapter", **KINDS["head"])
    with pytest.raises(AdapterError, match="cannot merge"):
        merge(folder, "bundled", tmp_path / "merged", LoadOptions())
