"""The parts around the fake model: requests, clocks and engines; all is deterministic."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any

from greenllm.core import (
    AdapterRef,
    Batch,
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprob,
    sequences_of,
)
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.grid import Intensity, StaticIntensity
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.meters.protocol import Meter, Reading
from greenllm.engine.native import NativeEngine
from greenllm.engine.protocol import BatchLimits
from greenllm.model.adapters import AdapterRegistry
from greenllm.runner.base import Runner
from greenllm.speculation.speculator import Speculator
from greenllm.text import TextStream
from tests.fake_model import CONTEXT, EOS, FakeRunner, next_token, score

Alone = tuple[list[int], FinishReason, tuple[TokenLogprob, ...]]


def make_runner(
    num_blocks: int = 32, block_size: int = 4, on_run: Callable[[Batch], None] | None = None
) -> FakeRunner:
    """The fake model."""
    return FakeRunner(num_blocks, block_size, on_run)


def make_request(
    request_id: str, *prompts: SequenceOf[int], adapter: str | None = None, **sampling: Any
) -> Request:
    """A request of prompts and sampling options; seeded, so that it can be repeated."""
    return Request(
        request_id=request_id,
        prompts=tuple(tuple(prompt) for prompt in prompts),
        work=SamplingParams(**{"seed": 1, "max_tokens": 8, **sampling}),
        model="fake",
        adapter=None if adapter is None else AdapterRef(adapter, f"digest of {adapter}"),
    )


def alone(request: Request) -> list[Alone]:
    """What each sequence gets with nobody else around: tokens, reason, prompt scores."""
    sequences = sequences_of(request, eos_token_ids=frozenset({EOS}), max_len=CONTEXT)
    return [_alone(request, seq.token_ids, seq.seed, seq.max_len) for seq in sequences]


def _alone(request: Request, prompt: SequenceOf[int], seed: int, max_len: int) -> Alone:
    params, tokens, reason = request.sampling, list(prompt), "length"
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    while len(tokens) < max_len and reason == "length":
        tokens.append(next_token(request.adapter, seed, tokens))
        if tokens[-1] in ends and len(tokens) - len(prompt) >= params.min_tokens:
            reason = "stop"
    scored = params.prompt_logprobs is not None
    scores = [score(prompt[:at], prompt[at]) for at in range(1, len(prompt)) if scored]
    return tokens[len(prompt) :], "stop" if reason == "stop" else "length", tuple(scores)


def letters(params: SamplingParams) -> TextStream:
    """A tokenizer whose ids are the letters from `a` on."""
    return TextStream(
        lambda token_id: chr(ord("a") + token_id),
        lambda ids: "?" * len(ids),
        stop=params.stop,
        min_tokens=params.min_tokens,
    )


class SteadyMeter:
    """Ten watts, two of them idle."""

    method = "measured:fake"
    measured = True
    period_s = 0.0
    uncertainty = 0.05
    lag_s = 0.0
    idle_w: Mapping[str, float] | None = {"cpu": 2.0}

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def read(self) -> Reading:
        now_s = self._clock()
        return Reading(now_s, {"cpu": 10.0 * now_s})


def ticking(tick_s: float) -> Callable[[], float]:
    """A clock that moves on by so many seconds whenever it is read."""
    ticks = itertools.count()
    return lambda: next(ticks) * tick_s


def make_engine(
    runner: Runner | None = None,
    *,
    meter: Callable[[Callable[[], float]], Meter] = SteadyMeter,
    tick_s: float = 0.01,
    adapters: AdapterRegistry | None = None,
    speculator: Speculator | None = None,
    **limits: Any,
) -> NativeEngine:
    """An engine around the fake model, a steady meter and a ticking clock."""
    runner, clock = runner or make_runner(), ticking(tick_s)
    account = Account(meter(clock), runner.shape, clock=clock)
    account.start_serving()
    source = StaticIntensity(Intensity(360.0, "XX", "Nowhere", 2025, "test", "none"))
    return NativeEngine(
        runner,
        account,
        CarbonPolicy(source),
        text_stream=letters,
        clock=clock,
        limits=BatchLimits(**limits),
        adapters=adapters,
        speculator=speculator,
    )
