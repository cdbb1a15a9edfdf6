"""What vLLM is told, from options; vLLM itself is not needed for that."""

from __future__ import annotations

import os
from typing import Any

import pytest

from greenllm.model.info import LoadError
from greenllm.options import EngineConfig
from greenllm.vllm.backend import BackendPlan, engine_values, prepare_workers, speculative_values

PLAN = BackendPlan("folder", 128, "float32", on_gpu=False, draft_source="draft")


def config(**values: Any) -> EngineConfig:
    return EngineConfig(engine="vllm", **values)


def test_guesses_are_vllms_own_ways() -> None:
    assert speculative_values(config(), PLAN) is None
    found = speculative_values(config(speculative="prompt_lookup", speculative_tokens=3), PLAN)
    assert found is not None
    assert (found["method"], found["num_speculative_tokens"]) == ("ngram", 3)
    found = speculative_values(config(speculative="draft_model", draft_model="d"), PLAN)
    assert found == {"method": "draft_model", "num_speculative_tokens": 4, "model": "draft"}


@pytest.mark.parametrize(
    ("method", "what"), [("early_exit", "greenllm truncate"), ("auto", "it has off, prompt_lookup")]
)
def test_other_ways_are_refused_with_what_to_do(method: Any, what: str) -> None:
    with pytest.raises(LoadError, match=what):
        speculative_values(config(speculative=method), PLAN)


def test_prompts_are_cut_on_gpus_only() -> None:
    on_gpu = BackendPlan("folder", 4096, "bfloat16", on_gpu=True)
    cut = engine_values(config(), on_gpu)
    assert (cut["enable_chunked_prefill"], cut["max_num_batched_tokens"]) == (True, 2048)
    whole = engine_values(config(), BackendPlan("folder", 4096, "float32", on_gpu=False))
    assert (whole["enable_chunked_prefill"], whole["max_num_batched_tokens"]) == (False, 4096)


def test_a_model_is_spread_over_devices_where_that_is_asked_for() -> None:
    assert "tensor_parallel_size" not in engine_values(config(), PLAN)
    on_cpus = engine_values(config(tensor_parallel=2), PLAN)
    assert on_cpus["tensor_parallel_size"] == 2
    assert on_cpus["worker_extension_cls"] == "greenllm.vllm.worker.Extension"
    on_gpus = engine_values(
        config(tensor_parallel=4), BackendPlan("folder", 128, "float16", on_gpu=True)
    )
    assert on_gpus["tensor_parallel_size"] == 4
    assert "worker_extension_cls" not in on_gpus, "nothing is to be put right there"


def test_processes_that_share_a_model_take_their_threads_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    prepare_workers("auto")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    prepare_workers("2")
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_a_head_is_used_as_one() -> None:
    plan = BackendPlan(
        "folder", 128, "float32", on_gpu=False, draft_source="h", draft_method="eagle"
    )
    found = speculative_values(config(speculative="draft_model", draft_model="h"), plan)
    assert found == {"method": "eagle", "num_speculative_tokens": 4, "model": "h"}
