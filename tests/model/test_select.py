"""Which runner is taken, and that OpenVINO is believed only after it agreed with torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import transformers
from openvino import Output, opset13

from greenllm.model.info import LoadError
from greenllm.model.options import BUNDLED, LoadOptions
from greenllm.model.spec import spec_of
from greenllm.options import EngineConfig
from greenllm.runner.openvino import attention
from greenllm.runner.openvino.load import Blueprint, KvCacheOptions, read_blueprint
from greenllm.runner.openvino.machine import TESTED
from greenllm.runner.openvino.runner import OpenVinoRunner
from greenllm.runner.passes import remembered
from greenllm.runner.registry import RUNNERS, load_runner
from greenllm.runner.selfcheck import (
    SelfCheckError,
    check_openvino,
    measure,
    shrink,
    tolerance,
    warn_if_untested,
)
from greenllm.runner.torch import TorchRunner
from tests.model.driving import GPT2, save

BASE: dict[str, Any] = {
    "vocab_size": 960,
    "hidden_size": 512,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 2}
BIASES = {"attention_bias": True, "mlp_bias": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-biased": ("LlamaConfig", {"head_dim": 128, "num_key_value_heads": 8, **BIASES}),
    "mistral": ("MistralConfig", {"sliding_window": 1024}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-window": ("Qwen2Config", WINDOWED),
    "qwen3": ("Qwen3Config", {"head_dim": 128}),
    "phi3": ("Phi3Config", {"num_key_value_heads": 8}),
}
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    return save(transformers.GPT2Config(**GPT2), tmp_path / "gpt2")


def _config(tmp_path: Path, **options: Any) -> EngineConfig:
    return EngineConfig(device="cpu", kv_cache_gb=0.01, cache_dir=tmp_path / "cache", **options)


def test_options_name_every_runner() -> None:
    assert {*get_args(get_type_hints(EngineConfig)["runner"])} == {"auto", *RUNNERS}


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
        ({"quantize": "fp8"}, "--quantize fp8 is vLLM's"),
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


def _plan(name: str = BUNDLED, **formats: Any) -> Blueprint:
    kv_dtype = formats.pop("kv_dtype", "auto")
    options = LoadOptions(**{"device": "cpu", **formats})
    return read_blueprint(name, options, KvCacheOptions(2**22, 4, kv_dtype))


def _config_only(tmp_path: Path, kind: str, **changes: Any) -> str:
    """A folder with a config.json and no weights, which the self-check does not read."""
    config = getattr(transformers, kind)(**(BASE | changes))
    config.architectures = [kind.replace("Config", "ForCausalLM")]
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    return str(tmp_path)


FORMATS = [
    {},
    {"quantization": "int8"},
    {"quantization": "int4", "kv_dtype": "u8"},
    {"quantization": "int4", "dtype": "float32"},
]


@pytest.mark.parametrize("formats", FORMATS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_check_passes_for_every_family_and_format(
    family: str, formats: dict[str, Any], tmp_path: Path
) -> None:
    kind, settings = FAMILIES[family]
    plan = _plan(_config_only(tmp_path, kind, **settings), **formats)
    difference = measure(shrink(plan.config, plan.spec), plan)
    print(f"{family} {formats}: {difference:.2g} of {tolerance(plan.precision):.2g}")
    assert difference < tolerance(plan.precision)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_has_the_features_of_the_served_one(family: str, tmp_path: Path) -> None:
    kind, settings = FAMILIES[family]
    spec = _plan(_config_only(tmp_path, kind, **settings)).spec
    tiny = spec_of(shrink(json.loads((tmp_path / "config.json").read_text()), spec))
    for name in ("family", "head_dim", "tied", "has_head_norms", "is_fused", "biased_groups"):
        assert getattr(tiny, name) == getattr(spec, name)
    assert tiny.inverse_frequencies == spec.inverse_frequencies
    assert any(tiny.windows) == any(spec.windows)
    assert (tiny.num_kv_heads < tiny.num_heads) == (spec.num_kv_heads < spec.num_heads)


def test_a_pass_is_remembered_for_what_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [_plan(), _plan(quantization="int8"), _plan(kv_dtype="u8")]
    for plan in plans:
        check_openvino(tmp_path, plan)
    passed = list((tmp_path / "selfcheck").iterdir())
    assert len(passed) == len(plans)
    assert all("difference" in path.read_text() for path in passed)
    assert [found.family for found in remembered(tmp_path)] == ["llama"] * len(plans)
    assert all(found.shape.startswith("heads of ") for found in remembered(tmp_path))
    assert all(0 <= found.difference <= found.allowed for found in remembered(tmp_path))

    def forget(*_: Any) -> float:
        raise AssertionError("checked again")

    monkeypatch.setattr("greenllm.runner.selfcheck.measure", forget)
    for plan in plans:
        check_openvino(tmp_path, plan)
    for changed in ("openvino", "torch", "transformers"):
        monkeypatch.setattr(
            "greenllm.runner.selfcheck.version",
            lambda name, changed=changed: "0" if name == changed else version(name),
        )
        with pytest.raises(AssertionError, match="checked again"):
            check_openvino(tmp_path, plans[0])


def test_a_start_checks_what_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Blueprint] = []
    monkeypatch.setattr(
        "greenllm.runner.registry.check_openvino", lambda _, plan: seen.append(plan)
    )
    load_runner(_config(tmp_path, quantize="int8", kv_dtype="u8"))
    (plan,) = seen
    assert (plan.spec.family, plan.precision.bits, plan.precision.kv_name) == ("llama", 8, "u8")


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_a_window_that_is_ignored_is_seen_in_every_format(
    formats: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Output] = attention.paged_attention

    def wide(*inputs: Any) -> Output:
        return real(*inputs[:-1], replace(inputs[-1], window=0))

    monkeypatch.setattr("greenllm.runner.openvino.graph.paged_attention", wide)
    plan = _plan(_config_only(tmp_path, "MistralConfig", sliding_window=64), **formats)
    with pytest.raises(SelfCheckError, match=r"for mistral with .* weights"):
        check_openvino(None, plan)


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_biases_that_are_lost_are_seen_in_every_format(
    formats: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenllm.model.decoder_weights.DecoderWeights.bias", lambda *_: None)
    plan = _plan(_config_only(tmp_path, "Qwen2Config"), **formats)
    with pytest.raises(SelfCheckError, match="differs from torch"):
        check_openvino(None, plan)


def test_the_tested_versions_are_those_that_are_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (pinned,) = [line for line in project["dependencies"] if line.startswith("openvino")]
    assert pinned.partition(";")[0] == f"openvino{TESTED}"


@pytest.mark.parametrize(
    ("installed", "tested"),
    [
        ("2026.4.0", True),
        ("2026.4.1", True),
        ("2026.3.9", False),
        ("2026.5.0", False),
        ("2026.5.0.dev20261101", False),
        ("2026.10.0", False),
        ("2027.4.0", False),
    ],
)
def test_another_openvino_is_named_beside_the_tested_ones(
    installed: str,
    tested: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("greenllm.runner.selfcheck.version", lambda _: installed)
    warn_if_untested()
    said = f"OpenVINO {installed} is installed, tested was >=2026.4,<2026.5"
    assert (said in caplog.text) != tested


def test_a_graph_that_computes_something_else_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = attention.paged_attention

    def wrong(query: Output, *rest: Any) -> Output:
        return real(opset13.multiply(query, opset13.constant(np.float32(1.05))).output(0), *rest)

    monkeypatch.setattr("greenllm.runner.openvino.graph.paged_attention", wrong)
    with pytest.raises(SelfCheckError, match="differs from torch"):
        check_openvino(tmp_path, _plan())
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
        check_openvino(tmp_path, _plan())
    assert not list(tmp_path.iterdir())
