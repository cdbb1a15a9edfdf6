"""Which runner is taken, and that OpenVINO is believed only after it agreed with torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from openvino import Output, opset13

from greenllm.config import EngineConfig
from greenllm.model.info import LoadError
from greenllm.runner.openvino import attention
from greenllm.runner.openvino.runner import OpenVinoRunner
from greenllm.runner.select import load_runner
from greenllm.runner.selfcheck import SelfCheckError, check_openvino
from greenllm.runner.torch import TorchRunner

GPT2: dict[str, Any] = {
    "vocab_size": 96,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture
def gpt2(tmp_path: Path, save: Callable[..., str]) -> str:
    return save(transformers.GPT2Config(**GPT2), tmp_path / "gpt2")


def _config(tmp_path: Path, **options: Any) -> EngineConfig:
    return EngineConfig(device="cpu", kv_cache_gb=0.01, cache_dir=tmp_path / "cache", **options)


def test_cpus_get_openvino(tmp_path: Path) -> None:
    assert isinstance(load_runner(_config(tmp_path)), OpenVinoRunner)
    assert isinstance(load_runner(_config(tmp_path, runner="torch")), TorchRunner)
    assert isinstance(load_runner(_config(tmp_path, quantize="nf4")), TorchRunner)
    int4 = load_runner(_config(tmp_path, quantize="int4"))
    assert isinstance(int4, OpenVinoRunner)
    assert int4.info.quantization == "int4"


def test_an_unknown_architecture_falls_back_with_the_reason(
    gpt2: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(load_runner(_config(tmp_path, model=gpt2)), TorchRunner)
    assert "model type 'gpt2'" in caplog.text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runner": "openvino", "quantize": "nf4"}, "--quantize nf4 is for the torch runner"),
        ({"runner": "torch", "quantize": "int4"}, "--runner torch was asked for"),
        ({"runner": "openvino", "block_size": 16}, "--block-size 16"),
        ({"runner": "torch", "kv_dtype": "u8"}, "--kv-dtype"),
        ({"runner": "openvino", "allow_pickle": True}, "--allow-pickle is for the torch runner"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError) as refusal:
        load_runner(_config(tmp_path, **options))
    assert says in str(refusal.value)


@pytest.mark.parametrize("options", [{"runner": "openvino"}, {"quantize": "int4"}])
def test_what_was_asked_for_by_name_is_never_replaced(
    options: dict[str, Any], gpt2: str, tmp_path: Path
) -> None:
    with pytest.raises(LoadError) as refusal:
        load_runner(_config(tmp_path, model=gpt2, **options))
    assert "model type 'gpt2'" in str(refusal.value)


def test_the_self_check_passes_and_is_remembered(tmp_path: Path) -> None:
    check_openvino(tmp_path)
    (passed,) = (tmp_path / "selfcheck").iterdir()
    assert "largest_difference" in passed.read_text()
    check_openvino(tmp_path)


def test_a_graph_that_computes_something_else_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = attention.paged_attention

    def wrong(query: Output, *rest: Any) -> Output:
        return real(opset13.multiply(query, opset13.constant(np.float32(1.05))).output(0), *rest)

    monkeypatch.setattr("greenllm.runner.openvino.graph.paged_attention", wrong)
    with pytest.raises(SelfCheckError, match="differs from torch"):
        check_openvino(tmp_path)
    assert isinstance(load_runner(_config(tmp_path)), TorchRunner)
    assert "differs from torch" in caplog.text
    with pytest.raises(LoadError, match="differs from torch"):
        load_runner(_config(tmp_path, runner="openvino"))


def test_an_operation_that_fails_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Output:
        raise RuntimeError("PagedAttention expects 29 inputs")

    monkeypatch.setattr("greenllm.runner.openvino.graph.paged_attention", broken)
    with pytest.raises(SelfCheckError, match="expects 29 inputs"):
        check_openvino(tmp_path)
