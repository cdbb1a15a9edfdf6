"""The rehearsal: thread trials on a real runner."""

from __future__ import annotations

import pytest
import torch

from greenllm.model.options import BUNDLED, LoadOptions
from greenllm.runner.openvino.decoders import Decoder, DecoderFactory
from greenllm.runner.openvino.load import KvCacheOptions, load_openvino_runner
from greenllm.runner.warmup import plan_threads
from tests.model.driving import answers, load


@pytest.mark.parametrize("setting", ["auto", "eco", "2"])
def test_the_plan_is_put_into_effect(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load_openvino_runner(BUNDLED, LoadOptions(), KvCacheOptions(2**26, 64))
    compiled, compile_ = {1}, DecoderFactory.compile

    def record(factory: DecoderFactory, threads: int) -> Decoder:
        compiled.add(threads)
        return compile_(factory, threads)

    monkeypatch.setattr(DecoderFactory, "compile", record)
    expected = answers(ours, [[5, 6, 7]], 6)
    plan = plan_threads(ours, setting, 2)
    assert set(plan.threads) <= {1, 2}
    assert (plan.threads == (2,)) == (setting == "2")
    assert set(plan.threads) <= compiled
    assert answers(ours, [[5, 6, 7]], 6) == expected


def test_the_torch_runner_obeys_its_plan(tiny: str) -> None:
    runner, before = load(tiny), torch.get_num_threads()
    try:
        assert plan_threads(runner, "2", 4).threads == (2,)
        answers(runner, [[5, 6]], 2)
        assert torch.get_num_threads() == 2
        plan_threads(runner, "auto", 2)
    finally:
        torch.set_num_threads(before)


def test_sizes_that_do_not_fit_are_left_out(tiny: str) -> None:
    plan = plan_threads(load(tiny, kv_cache_bytes=2**14), "eco", 2)
    assert plan.sizes[0] == 1
    assert 128 not in plan.sizes
