"""Guesses change neither answers nor their distribution, and the comparison would tell if they did.

A small version of `python -m evals.studies.exactness` on random models, and a chi-square test of
what many seeds draw against the exact probabilities. Both are repeated with engines
that are made wrong.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from evals.studies.exactness import answer_all, check_way, holds, make_requests, random_prompts
from greenllm.core import Chunk, Request, Sample, SamplingParams, Speculation, SpeculativeMethod
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.meters.modelled import modelled_meter
from greenllm.engine.native import NativeEngine
from greenllm.engine.protocol import BatchLimits
from greenllm.model.loader import LoadedModel, load_model
from greenllm.model.options import LoadOptions
from greenllm.runner import readout
from greenllm.runner.draft_model import DraftModel
from greenllm.runner.openvino.load import KvCacheOptions, load_openvino_runner
from greenllm.runner.sampling import Draw, SamplingPosition
from greenllm.runner.torch import load_torch_runner
from greenllm.speculation.drafter import Drafter
from greenllm.speculation.speculator import OFF, PromptLookup, Speculator
from greenllm.text import TextStream
from tests.model.driving import LLAMA, save

VOCABULARY = 96
FEW_TOKENS = 6
DRAWS = 4000
TEMPERATURE = 1.2
LEAST_P = 1e-4
Drafters = dict[SpeculativeMethod, Drafter]
Mutation = Callable[[pytest.MonkeyPatch], None]


def _openvino(folder: str, num_blocks: int | None = None) -> Any:
    return load_openvino_runner(
        folder, LoadOptions(), KvCacheOptions(2**25, 32, num_blocks=num_blocks)
    )


def _torch(folder: str, num_blocks: int | None = None) -> Any:
    return load_torch_runner(
        folder,
        LoadOptions(device="cpu"),
        block_size=16,
        kv_cache_bytes=2**25,
        max_num_seqs=32,
        num_blocks=num_blocks,
    )


RUNNERS: dict[str, Callable[..., Any]] = {"openvino": _openvino, "torch": _torch}


def _config(vocabulary: int, layers: int, spread: float) -> LlamaConfig:
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": layers, "initializer_range": spread}
    return LlamaConfig(**LLAMA | sizes)


def _no_text(params: SamplingParams) -> TextStream:
    return TextStream(lambda token_id: "", lambda token_ids: "")


def _engine(runner: Any, drafters: Drafters) -> NativeEngine:
    account = Account(modelled_meter(), runner.shape, clock=time.monotonic)
    account.start_serving()
    return NativeEngine(
        runner,
        account,
        CarbonPolicy(None),
        text_stream=_no_text,
        clock=time.monotonic,
        limits=BatchLimits(max_num_seqs=32),
        speculator=Speculator(drafters, OFF),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(_config(VOCABULARY, 6, 0.12), tmp_path_factory.mktemp("six"))


@pytest.fixture(scope="module")
def reference(folder: str) -> LoadedModel:
    return load_model(folder, LoadOptions(dtype="float32", device="cpu"))


@pytest.fixture(scope="module", params=RUNNERS)
def equipped(request: pytest.FixtureRequest, folder: str) -> tuple[Any, Drafters]:
    """A runner, and everything that can guess for it; its draft model is itself."""
    load = RUNNERS[request.param]
    runner = load(folder)
    twin = load(folder, runner.num_blocks)
    return runner, {
        "prompt_lookup": PromptLookup(),
        "early_exit": runner.early_exit(4),
        "draft_model": DraftModel(twin, twin.as_drafter()),
    }


@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_answers_are_those_without_guesses(
    equipped: tuple[Any, Drafters], reference: LoadedModel, way: str
) -> None:
    runner, drafters = equipped
    asked = make_requests(random_prompts(64, VOCABULARY, seed=1), way, 16, VOCABULARY, seed=1)
    rows = list(check_way(_engine(runner, drafters), asked, [*drafters, "auto"], reference))
    assert [row["method"] for row in rows] == [*drafters, "auto", "mixed"]
    assert [row["different"] for row in rows] == [0] * len(rows), rows
    # Whether `auto` tries guesses in so few steps is up to the clock.
    assert [row["method"] for row in rows if not holds(row)] in ([], ["auto"])


def _take_all_guesses(patch: pytest.MonkeyPatch) -> None:
    def checked(chunk: Chunk, choices: list[Draw], scored: Sample) -> Sample:
        if not choices:
            return scored
        scores = tuple(choice.logprob for choice in choices if choice.logprob is not None)
        return Sample((*chunk.draft, choices[-1].token_id), scores, scored.prompt)

    patch.setattr(readout, "_checked", checked)


def _draw_alike_at_all_places(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SamplingPosition, "position", property(lambda place: len(place.seq.token_ids)))


def _penalise_no_guesses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        SamplingPosition, "output_counts", property(lambda place: place.seq.output_counts)
    )


def _forbid_ends_for_longer(patch: pytest.MonkeyPatch) -> None:
    def is_too_early(place: SamplingPosition) -> bool:
        return place.seq.num_generated < place.sampling.min_tokens

    patch.setattr(SamplingPosition, "is_too_early", property(is_too_early))


MUTATIONS: dict[Mutation, str] = {
    _take_all_guesses: "greedy",
    _draw_alike_at_all_places: "sampled",
    _penalise_no_guesses: "greedy",
    _forbid_ends_for_longer: "sampled",
}


@pytest.mark.parametrize("equipped", ["openvino"], indirect=True)
@pytest.mark.parametrize("mutate", MUTATIONS)
def test_wrong_engines_are_found_out(
    equipped: tuple[Any, Drafters],
    reference: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    mutate: Mutation,
) -> None:
    runner, drafters = equipped
    prompts, way = random_prompts(64, VOCABULARY, seed=1), MUTATIONS[mutate]
    asked = make_requests(prompts, way, 16, VOCABULARY, seed=1)
    mutate(monkeypatch)
    rows = list(check_way(_engine(runner, drafters), asked, ["draft_model"], reference))
    assert sum(row["different"] for row in rows) > 0
    assert not all(map(holds, rows))


# Every pair of tokens stands in it, so that a lookup always finds something.
PAIRS = tuple(itertools.chain(*itertools.product(range(FEW_TOKENS), repeat=2)))
Three = tuple[int, ...]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of six tokens."""
    return save(_config(FEW_TOKENS, 3, 0.16), tmp_path_factory.mktemp("few"))


def _exact(folder: str) -> dict[Three, float]:
    """Probability of each three tokens after the prompt, by plain transformers."""
    model = load_model(folder, LoadOptions(dtype="float32", device="cpu")).model
    threes = list(itertools.product(range(FEW_TOKENS), repeat=3))
    with torch.no_grad():
        logits = model(torch.tensor([[*PAIRS, *three] for three in threes])).logits
    logprobs = torch.log_softmax(logits[:, -4:-1].double() / TEMPERATURE, dim=-1)
    found = logprobs.gather(2, torch.tensor(threes)[:, :, None]).sum(dim=(1, 2)).exp()
    return dict(zip(threes, found.tolist(), strict=True))


def _draw(runner: Any, method: SpeculativeMethod) -> tuple[list[Three], int, int]:
    """Three tokens of each seed; how many guesses were made, and how many came true.

    The first follows the prompt, so the second and third are guessed together.
    """
    drafters: Drafters = {"prompt_lookup": PromptLookup()}
    if method == "early_exit":
        drafters = {method: runner.early_exit(2)}
    engine = _engine(runner, drafters)
    requests = [
        Request(
            f"draw-{seed}",
            (PAIRS,),
            SamplingParams(temperature=TEMPERATURE, seed=seed, max_tokens=4),
            model="",
            speculation=Speculation(method, 2),
        )
        for seed in range(DRAWS)
    ]
    answers = answer_all(engine, requests)
    drawn = [tuple(token.token_id or 0 for token in answer[:3]) for answer in answers]
    stats = engine.stats()
    return drawn, stats.drafted_tokens, stats.accepted_tokens


def _p_value(drawn: SequenceOf[Three], exact: dict[Three, float]) -> float:
    """Chi-square: how often chance alone is as far off; cells that expect below 5 are one."""
    counts = Counter(drawn)
    cells = [[counts[key], len(drawn) * chance] for key, chance in exact.items()]
    large = [cell for cell in cells if cell[1] >= 5]
    rest = [sum(column) for column in zip(*(c for c in cells if c[1] < 5), strict=True)]
    large += [rest] if rest and rest[1] >= 1 else []
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in large)
    half = torch.tensor([(len(large) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _second(exact: dict[Three, float]) -> dict[Three, float]:
    chances: dict[Three, float] = {}
    for three, chance in exact.items():
        chances[three[1:2]] = chances.get(three[1:2], 0.0) + chance
    return chances


@pytest.mark.parametrize("method", ["early_exit", "prompt_lookup"])
@pytest.mark.parametrize("kind", RUNNERS)
def test_guesses_keep_the_distribution(few: str, kind: str, method: SpeculativeMethod) -> None:
    exact = _exact(few)
    assert math.isclose(sum(exact.values()), 1, rel_tol=1e-6)
    drawn, drafted, accepted = _draw(RUNNERS[kind](few), method)
    assert DRAWS / 20 < accepted < drafted - DRAWS / 20
    assert _p_value(drawn, exact) > LEAST_P
    assert _p_value([three[1:2] for three in drawn], _second(exact)) > LEAST_P


@pytest.mark.parametrize("mutate", [_take_all_guesses, _draw_alike_at_all_places])
def test_the_test_of_the_distribution_can_fail(
    few: str, monkeypatch: pytest.MonkeyPatch, mutate: Mutation
) -> None:
    mutate(monkeypatch)
    drawn, _, _ = _draw(_openvino(few), "early_exit")
    assert _p_value(drawn, _exact(few)) < LEAST_P
