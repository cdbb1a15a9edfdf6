"""Rounds, medians and the report; nothing is started."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from evals.load.plan import Shot
from evals.studies import study
from evals.studies.peers import agree
from evals.studies.peers.__main__ import app
from evals.studies.peers.arms import ARMS, Place
from evals.studies.peers.checkpoint import config_135m, write_checkpoint
from evals.studies.peers.gguf_file import write_gguf
from evals.studies.peers.install import INSTALLERS, llama_commit, require_tools
from evals.studies.peers.measure import Plan, medians, take_turn
from evals.studies.peers.report import page, plot
from evals.studies.peers.words import VOCABULARY, merges, text_of, vocabulary, word_at, words
from greenllm.core import GreenllmError
from greenllm.model.files import check_folder
from greenllm.model.options import BUNDLED_PATH

PLAN = Plan((1, 8), 8, 64, 128, 512, 4, 2, (0, 1), 60.0)


def result(rate: float, failed: int = 0) -> dict[str, Any]:
    summary = {
        "tokens_per_s": rate,
        "prompt_tokens_per_s": 2 * rate,
        "ttft_s": {"p50": 0.1},
        "tpot_s": None,
        "energy": None,
        "failed": failed,
        "failures": {"HTTP 500: no": failed} if failed else {},
    }
    seen = {"peak_bytes": 1_000_000}
    return {
        "summary": summary,
        "footprint": seen,
        "tokens_per_cpu_s": rate / 2,
        "client_cpu_s": 0.1,
    }


def turns(*rates: float) -> list[dict[str, Any]]:
    return [{"round": i, "loads": {"1": result(rate)}} for i, rate in enumerate(rates)]


def test_medians_leave_out_rounds_with_a_failure() -> None:
    taken = [*turns(10.0, 30.0, 20.0), {"round": 3, "loads": {"1": result(999.0, failed=1)}}]
    found = medians([*taken, {"round": 4, "failure": "did not start"}])
    assert found["loads"]["1"]["tokens_per_s"] == 20.0
    assert found["loads"]["1"]["rounds"] == 3
    assert found["loads"]["1"]["tpot_p50_s"] is None
    assert found["loads"]["1"]["failures"] == ["HTTP 500: no"]
    assert found["failures"] == ["did not start"]


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_gets_the_same_limits(name: str, tmp_path: Path) -> None:
    place = Place(tmp_path, 4321, 2, 32, PLAN.context, tmp_path)
    command = ARMS[name].command(place)
    assert "4321" in command
    assert ARMS[name].needs
    if name not in ("transformers-bf16",):
        assert "32" in command


def test_an_arm_that_is_not_installed_says_so(tmp_path: Path) -> None:
    for arm in ARMS.values():
        assert "not installed" in take_turn(arm, PLAN, tmp_path, tmp_path, 0)["failure"]


def test_the_vocabulary_is_full_and_merges_make_it() -> None:
    entries = vocabulary()
    assert len(entries) == len(set(entries)) == VOCABULARY
    known = set(entries)
    assert all(a in known and b in known and a + b in known for a, b in merges())
    assert word_at(700) == words()[700]


@pytest.mark.parametrize("count", [1, 2, 33, 512])
def test_a_text_has_exactly_the_tokens_asked_for(
    count: int, tmp_path: Path, tokens_of: Callable[[str], list[int]]
) -> None:
    assert len(tokens_of(text_of(3, Shot(5, count, 1)))) == count


@pytest.fixture(scope="module")
def tokens_of() -> Callable[[str], list[int]]:
    """The tokenizer of the benchmark's model."""
    from tokenizers import Tokenizer

    from evals.studies.peers.words import tokenizer_json

    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json()))
    return lambda text: list(tokenizer.encode(text).ids)


def test_a_gguf_file_has_the_checkpoints_weights(tmp_path: Path) -> None:
    config = config_135m()
    config.update({"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96})
    config.update({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4})
    write_checkpoint(tmp_path, config)
    write_gguf(tmp_path, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    weights = load_file(tmp_path / "model.safetensors")
    halves = found["blk.0.attn_q.weight"].data
    query = gguf.quants.dequantize(halves, gguf.GGMLQuantizationType.BF16)
    own = weights["model.layers.0.self_attn.q_proj.weight"].float().numpy()
    assert (query == own[[0, 2, 1, 3, 4, 6, 5, 7]]).all(), "halves of each head alternate"
    assert len(found) == len(weights)
    assert reader.fields["tokenizer.ggml.tokens"].contents() == vocabulary()
    assert reader.fields["llama.attention.head_count_kv"].contents() == 1


def test_a_gguf_file_is_converted_as_the_page_says(tmp_path: Path) -> None:
    """The page on models has the code; what comes out is the model that the file was made of."""
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    code = page.partition("GGUF files")[2].partition("```python\n")[2].partition("```")[0]
    write_gguf(BUNDLED_PATH, tmp_path / "model.gguf")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    check_folder(str(tmp_path / "my-model"), allow_pickle=False)
    weights = load_file(BUNDLED_PATH / "model.safetensors")
    found = load_file(tmp_path / "my-model" / "model.safetensors")
    for name, tensor in found.items():
        assert torch.allclose(tensor, weights[name].float(), rtol=1e-2)
    assert set(weights) - set(found) <= {"lm_head.weight"}


def test_a_page_says_what_ran_and_what_did_not(tmp_path: Path) -> None:
    path = study.RESULTS / "peers_4bit.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    figures |= {"rounds": 1, "rounds_wanted": 3}
    figures["arms"] |= {
        "fast": {"weights": "int8", "note": "a note", **medians(turns(1234.0))},
        "broken": {"weights": "int4", "note": "b", **medians([{"failure": "no\nway"}])},
    }
    text = page(figures)
    assert "medians of 1 (of 3: not over) interleaved rounds" in text
    assert "| fast | int8 | 1,234 | - | - | 617 |" in text
    assert "broken could not run: no way" in text
    assert "| broken |" not in text
    study.draw(plot, figures, tmp_path / "peers.svg")
    assert "fast" in (tmp_path / "peers.svg").read_text(encoding="utf-8")


def test_the_commit_of_llama_cpp_is_read_from_the_changes(tmp_path: Path) -> None:
    changes = tmp_path / "CHANGELOG.md"
    changes.write_text("- feat: update llama.cpp to ggml-org/llama.cpp@0c1e57098\n- x@bbbbbbb\n")
    assert llama_commit(changes) == "0c1e57098"
    changes.write_text("nothing")
    assert llama_commit(changes) == "unknown"


def peers(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


def test_peers_are_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    done = peers("install", "transformers", "nosuch", "--envs", str(tmp_path))
    assert isinstance(done.exception, GreenllmError)
    assert str(done.exception) == f"no peer nosuch; there are {', '.join(INSTALLERS)}"
    assert list(tmp_path.iterdir()) == []


def test_what_llama_cpp_is_compiled_with_is_looked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    done = peers("install", "llama.cpp", "--envs", str(tmp_path))
    assert isinstance(done.exception, GreenllmError)
    assert "no cmake and no C++ compiler here" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
    server = tmp_path / "llama.cpp" / "build" / "bin" / "llama-server"
    server.parent.mkdir(parents=True)
    server.touch()
    require_tools(tmp_path)


def test_the_help_of_install_tells_what_it_takes() -> None:
    text = peers("install", "--help").output
    for word in (*INSTALLERS, "GB", "minutes", "C++ compiler", "cmake"):
        assert word in text, word


def test_the_check_needs_the_model(tmp_path: Path) -> None:
    done = peers("check", "--envs", str(tmp_path))
    assert isinstance(done.exception, GreenllmError)
    assert "run `python -m evals.studies.peers model` first" in str(done.exception)


def test_the_check_covers_every_arm_that_takes_ids() -> None:
    forms = {*agree.MUST_AGREE, *agree.MAY_DIFFER} - {agree.GGUF_BF16}
    assert forms == {name for name, arm in ARMS.items() if not arm.text_prompts}
    assert {ARMS[name].weights for name in agree.MUST_AGREE if name in ARMS} == {"bf16"}


def found(name: str, said: str | None) -> agree.Finding:
    return agree.judge(name, said, "AbCd", must_agree=name in agree.MUST_AGREE)


@pytest.mark.parametrize(
    ("findings", "problem"),
    [
        ([found("vllm-bf16", "AbCd"), found("greenllm-int4", "xx")], None),
        ([found("vllm-bf16", "AbCx")], "not as it must be: vllm-bf16"),
        ([found("vllm-w8a8", "AbCx")], None),
        ([agree.Finding("vllm-w8a8", False, failure="out of memory")], "must be: vllm-w8a8"),
        ([found("greenllm-int8", "AbCd"), found("vllm-bf16", None)], "no peer is installed"),
    ],
)
def test_the_verdict(findings: list[agree.Finding], problem: str | None) -> None:
    verdict = agree.verdict(findings)
    assert verdict is None if problem is None else problem in (verdict or "")


def test_a_finding_is_one_line() -> None:
    assert str(found("vllm-bf16", None)) == "vllm-bf16: not installed"
    assert str(found("vllm-bf16", "AbCd")) == "vllm-bf16: the same"
    assert (
        str(found("vllm-bf16", "AbX")) == "vllm-bf16: the same for 2 characters (must be the same)"
    )
    assert "(quantized, so it may differ)" in str(found("vllm-w8a8", "x"))
