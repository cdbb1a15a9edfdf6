"""What vLLM is told, from options; vLLM itself is not needed for that."""

from __future__ import annotations

from typing import Any

import pytest

from greenllm.config import EngineConfig
from greenllm.model.info import LoadError
from greenllm.vllm.backend import Plan, engine_values, speculative_values

PLAN = Plan("folder", 128, "float32", on_gpu=False, draft_source="draft")


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
    on_gpu = Plan("folder", 4096, "bfloat16", on_gpu=True)
    cut = engine_values(config(), on_gpu)
    assert (cut["enable_chunked_prefill"], cut["max_num_batched_tokens"]) == (True, 2048)
    whole = engine_values(config(), Plan("folder", 4096, "float32", on_gpu=False))
    assert (whole["enable_chunked_prefill"], whole["max_num_batched_tokens"]) == (False, 4096)
