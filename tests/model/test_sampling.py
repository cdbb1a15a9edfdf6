"""Draws follow the filtered distribution, penalties their formulas, and seeds are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from greenllm.core import GREEDY_BELOW, AdapterRef, Chunk, Request, SamplingParams, Sequence
from greenllm.runner.readout import read_out
from greenllm.runner.sampling import SamplingPosition, sample, token_logprobs, uniform
from greenllm.runner.torch import TorchRunner
from tests.model.driving import ask, drive

LOGITS = (2.0, 1.5, 1.1, 0.4, 0.0, -0.7, -1.3, -3.0)
EOS = 5
DRAWS = 20_000


def _row(
    params: SamplingParams,
    *,
    prompt: tuple[int, ...] = (0,),
    answer: tuple[int, ...] = (),
    seed: int = 0,
) -> SamplingPosition:
    seq = Sequence(
        request=Request("request", (prompt,), params, model=""),
        index=0,
        token_ids=[*prompt, *answer],
        prompt_len=len(prompt),
        seed=seed,
        eos_token_ids=frozenset({EOS}),
        max_len=100,
        output_counts={token: answer.count(token) for token in answer},
    )
    return SamplingPosition(seq)


def _draw(
    rows: list[SamplingPosition], logits: tuple[float, ...] | torch.Tensor = LOGITS
) -> list[int]:
    table = torch.as_tensor(logits, dtype=torch.float32).expand(len(rows), -1)
    return [found.token_id for found in sample(table, rows)]


def _distribution(params: SamplingParams) -> list[float]:
    """What should be drawn, in plain Python: temperature, min_p, top_k, top_p."""
    weights = [math.exp(logit / params.temperature) for logit in LOGITS]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept = [i for i in order if weights[i] >= params.min_p * weights[order[0]]]
    kept = kept[: params.top_k or len(kept)]
    total, covered, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if covered >= params.top_p * total:
            break
        nucleus.append(i)
        covered += weights[i]
    return [weights[i] / covered if i in nucleus else 0.0 for i in range(len(weights))]


def _assert_fits(drawn: list[int], expected: list[float]) -> None:
    """Chi-square below its 0.9999 quantile (Wilson and Hilferty), and nothing impossible."""
    counts = [drawn.count(token) for token in range(len(expected))]
    possible = [token for token, p in enumerate(expected) if p > 0]
    assert sum(counts[token] for token in possible) == len(drawn)
    freedom = len(possible) - 1
    if not freedom:
        return
    statistic = sum(
        (counts[t] - len(drawn) * expected[t]) ** 2 / (len(drawn) * expected[t]) for t in possible
    )
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.72 * math.sqrt(spread)) ** 3


FILTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 2.0},
    "cold": {"temperature": 0.3},
    "top_k": {"top_k": 3},
    "top_k 1": {"top_k": 1},
    "top_k of all": {"top_k": 1000},
    "top_p": {"top_p": 0.7},
    "top_p tiny": {"top_p": 1e-6},
    "min_p": {"min_p": 0.25},
    "min_p 1": {"min_p": 1.0},
    "top_k and top_p": {"top_k": 4, "top_p": 0.8},
    "all": {"temperature": 1.4, "top_k": 6, "top_p": 0.9, "min_p": 0.1},
}


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_filtered_distribution(name: str) -> None:
    params = SamplingParams(**FILTERS[name])
    expected = _distribution(params)
    rows = [_row(params, seed=seed) for seed in range(DRAWS)]
    _assert_fits(_draw(rows), expected)


def test_draws_of_one_seed_follow_it_too() -> None:
    """Along the positions of one sequence."""
    params = SamplingParams(top_p=0.95)
    rows = [_row(params, prompt=(0,) * length, seed=7) for length in range(1, 2001)]
    _assert_fits(_draw(rows), _distribution(params))


def test_rows_of_one_batch_keep_their_own_settings() -> None:
    kinds = [SamplingParams(**settings) for settings in FILTERS.values()]
    greedy = SamplingParams(temperature=0)
    rows = [_row(params, seed=seed) for seed in range(50) for params in [*kinds, greedy]]
    assert _draw(rows) == [_draw([row])[0] for row in rows]


def test_the_distribution_test_can_fail() -> None:
    rows = [_row(SamplingParams(), seed=seed) for seed in range(DRAWS)]
    with pytest.raises(AssertionError):
        _assert_fits(_draw(rows), _distribution(SamplingParams(temperature=1.05)))


def test_uniform_numbers() -> None:
    numbers = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.02)
    assert uniform(3, 4) == uniform(3, 4)


def test_temperature_zero_is_the_maximum_whatever_the_seed() -> None:
    rows = [_row(SamplingParams(temperature=0, seed=seed), seed=seed) for seed in range(20)]
    assert _draw(rows) == [0] * 20


def test_no_rows() -> None:
    assert sample(torch.zeros(0, 8), []) == []


PROMPT, ANSWER = (0, 3, 3, 7), (1, 1, 4, 1, 0)


def _assert_same_draws(params: SamplingParams, adjusted: torch.Tensor) -> None:
    """Draws with the penalty are draws without it from logits adjusted by someone else."""
    plain = SamplingParams()
    seeds = range(400)
    penalised = [_row(params, prompt=PROMPT, answer=ANSWER, seed=seed) for seed in seeds]
    unpenalised = [_row(plain, prompt=PROMPT, answer=ANSWER, seed=seed) for seed in seeds]
    drawn = _draw(penalised)
    assert drawn == _draw(unpenalised, adjusted)
    assert drawn != _draw(unpenalised)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 3.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    processor = RepetitionPenaltyLogitsProcessor(penalty=penalty)
    adjusted = processor(torch.tensor([[*PROMPT, *ANSWER]]), torch.tensor([LOGITS]))[0]
    _assert_same_draws(SamplingParams(repetition_penalty=penalty), adjusted)


@pytest.mark.parametrize(("presence", "frequency"), [(0.8, 0.0), (0.0, 0.6), (-1.5, 0.4)])
def test_presence_and_frequency_follow_openai(presence: float, frequency: float) -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c over the generated tokens only."""
    counts = [ANSWER.count(token) for token in range(len(LOGITS))]
    adjusted = [
        mu - c * frequency - (c > 0) * presence for mu, c in zip(LOGITS, counts, strict=True)
    ]
    params = SamplingParams(presence_penalty=presence, frequency_penalty=frequency)
    _assert_same_draws(params, torch.tensor(adjusted))


def test_logit_bias_adds() -> None:
    adjusted = torch.tensor(LOGITS)
    adjusted[[2, 6]] += torch.tensor([-1.0, 2.5])
    _assert_same_draws(SamplingParams(logit_bias={2: -1.0, 6: 2.5}), adjusted)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_a_hundred_forces_and_forbids(temperature: float) -> None:
    force = SamplingParams(temperature=temperature, logit_bias={7: 100})
    forbid = SamplingParams(temperature=temperature, logit_bias={0: -100, 1: -100})
    assert set(_draw([_row(force, seed=seed) for seed in range(200)])) == {7}
    assert not {0, 1} & set(_draw([_row(forbid, seed=seed) for seed in range(200)]))


def test_min_tokens_masks_the_ends() -> None:
    """Until then neither the model's end nor the request's own is drawn, whatever the bias."""
    params = SamplingParams(min_tokens=2, stop_token_ids=(0,), logit_bias={EOS: 100, 0: 50})
    for answer, allowed in (((), False), ((1,), False), ((1, 1), True)):
        rows = [_row(params, answer=answer, seed=seed) for seed in range(200)]
        assert (set(_draw(rows)) == {EOS}) == allowed
        assert bool({EOS, 0} & set(_draw(rows))) == allowed


class Counting:
    """A mask that allows one token: 3 at first, then 4, and so on."""

    def __init__(self) -> None:
        self.next = 3

    def allowed(self, ahead: tuple[int, ...]) -> bytearray:
        mask = bytearray(len(LOGITS))
        mask[self.next + len(ahead)] = 1
        return mask

    def push(self, token_id: int) -> None:
        self.next = token_id + 1


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_mask_forbids_tokens_of_its_own_sequence(temperature: float) -> None:
    held, free = (_row(SamplingParams(temperature=temperature), seed=3) for _ in range(2))
    alone = _draw([free])
    held.seq.mask = Counting()
    assert _draw([free, held, SamplingPosition(held.seq, (3,))]) == [*alone, 3, 4]
    held.seq.mask.push(5)
    assert _draw([held]) == [6]


def test_reported_probabilities_are_of_the_raw_logits() -> None:
    params = SamplingParams(temperature=0.5, top_k=1, logit_bias={7: 100}, logprobs=2)
    [found] = sample(torch.tensor([LOGITS]), [_row(params)])
    raw = torch.log_softmax(torch.tensor(LOGITS), dim=-1)
    assert found.logprob is not None
    assert found.logprob.token_id == found.token_id == 7
    assert found.logprob.logprob == pytest.approx(float(raw[7]))
    assert [token for token, _ in found.logprob.top] == [0, 1]


def test_counts_of_alternatives_differ_by_row() -> None:
    logits = torch.tensor([LOGITS, LOGITS, LOGITS])
    reports = token_logprobs(logits, [3, 4, 5], [0, 2, 50])
    assert [len(report.top) for report in reports] == [0, 2, len(LOGITS)]
    plain = SamplingParams(temperature=0)
    found = sample(logits[:2], [_row(plain), _row(SamplingParams(temperature=0, logprobs=0))])
    assert found[0].logprob is None
    assert found[1].logprob is not None
    assert found[1].logprob.top == ()


@pytest.fixture
def seeded(tiny_runner: TorchRunner) -> Callable[..., list[tuple[int, ...]]]:
    """Answers of a request to the tiny model, with `beside` other requests in its batches."""

    def answer(beside: int = 0, **settings: Any) -> list[tuple[int, ...]]:
        params = SamplingParams(max_tokens=20, **settings)
        own = ask(tiny_runner, (5, 9, 33, 4), params)
        others = [
            ask(tiny_runner, (60 + i, 61, 62) * (i + 1), SamplingParams(max_tokens=30), f"{i}")[0]
            for i in range(beside)
        ]
        drive(tiny_runner, [*others, *own], max_batch_tokens=16, stagger=int(beside > 0))
        return [tuple(seq.token_ids[seq.prompt_len :]) for seq in own]

    return answer


@pytest.mark.parametrize(
    "settings", [{}, {"top_p": 0.9, "temperature": 1.5}, {"repetition_penalty": 1.2, "top_k": 20}]
)
def test_a_seed_gives_the_same_tokens_in_any_batch(
    seeded: Callable[..., list[tuple[int, ...]]], settings: dict[str, float]
) -> None:
    alone = seeded(seed=11, **settings)
    assert seeded(seed=11, **settings) == alone
    assert seeded(beside=1, seed=11, **settings) == alone
    assert seeded(beside=5, seed=11, **settings) == alone
    assert len(set(alone[0])) > 3


def test_other_seeds_give_other_tokens(seeded: Callable[..., list[tuple[int, ...]]]) -> None:
    hot = {"temperature": 2.0}
    assert len({seeded(seed=seed, **hot)[0] for seed in range(6)}) == 6
    assert seeded(**hot) != seeded(**hot)


def test_choices_differ_and_the_first_is_the_single_one(
    seeded: Callable[..., list[tuple[int, ...]]],
) -> None:
    choices = seeded(seed=3, n=4, temperature=2.0)
    assert len(set(choices)) == 4
    assert seeded(seed=3, temperature=2.0) == choices[:1]


def test_greedy_ignores_the_seed(seeded: Callable[..., list[tuple[int, ...]]]) -> None:
    answers = {seeded(seed=seed, temperature=0)[0] for seed in range(4)}
    assert len(answers) == 1
    assert seeded(n=2, temperature=0) == [*answers, *answers]


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 2e-38},
        {"temperature": 2e-5},
        {"top_p": 2e-38},
        {"min_p": 1.0},
        {"top_k": 2**31},
        {"logit_bias": dict.fromkeys(range(len(LOGITS)), -100.0)},
    ],
)
def test_extremes_of_one_row_harm_nobody(extreme: dict[str, Any]) -> None:
    best = max(range(len(LOGITS)), key=LOGITS.__getitem__)
    alone = _draw([_row(SamplingParams(temperature=0.7), seed=5)])
    drawn = _draw(
        [_row(SamplingParams(**extreme), seed=3), _row(SamplingParams(temperature=0.7), seed=5)]
    )
    assert drawn[1:] == alone
    assert 0 <= drawn[0] < len(LOGITS)
    if "temperature" in extreme or "top_p" in extreme:
        assert drawn[0] == best


@pytest.mark.parametrize("spread", [0.01, 0.5, 3.0])
def test_looking_at_the_best_first_changes_no_draw(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters that keep fewer, as many and more tokens than the first look takes."""
    few, size = 8, 60
    generator = torch.Generator().manual_seed(3)
    filters: list[dict[str, Any]] = [
        *({"top_p": p} for p in (0.01, 0.2, 0.5, 0.9, 0.999)),
        *({"top_k": k} for k in (1, 7, 8, 9, 59, 60, 61)),
        *({"min_p": p} for p in (0.001, 0.5, 0.99, 1.0)),
        *({"top_p": 0.6, "top_k": k, "min_p": 0.3} for k in (0, 5, 8, 30)),
        *({"top_p": 0.6, "top_k": k} for k in (5, 8, 30)),
        *({"top_p": 0.6, "min_p": p} for p in (0.01, 0.7)),
    ]
    rows = [_row(SamplingParams(seed=i, **options)) for i, options in enumerate(filters * 8)]
    logits = torch.randn(len(rows), size, generator=generator) * spread
    found = []
    for first_look in (few, size):
        monkeypatch.setattr("greenllm.runner.sampling.FEW", first_look)
        found.append([s.token_id for s in sample(logits, rows)])
    assert found[0] == found[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_logit_anywhere_is_an_error_of_its_row(bad: float) -> None:
    kinds: list[dict[str, Any]] = [{"temperature": 0}, {"seed": 1}, {"top_k": 3}, {"logprobs": 2}]
    for kind in kinds:
        params = SamplingParams(**kind)
        logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
        expected = sample(logits, [_row(params)] * 3)
        logits[1, 49] = bad
        first, broken, last = sample(logits, [_row(params)] * 3)
        assert broken.logprob is None
        assert broken.error == "the model returned logits that are not finite"
        assert [first, last] == expected[::2]


def test_a_row_without_any_chance_is_an_error() -> None:
    [found] = sample(torch.full((1, 50), -math.inf), [_row(SamplingParams(temperature=0))])
    assert found.error


def test_tokens_that_cannot_come_are_not_reported() -> None:
    """Some models have logits of minus infinity, for which JSON has no number."""
    logits = torch.full((1, 8), -math.inf)
    logits[0, 2:4] = torch.tensor([1.0, 2.0])
    [found] = sample(logits, [_row(SamplingParams(temperature=0, logprobs=5))])
    assert found.logprob is not None
    assert [token_id for token_id, _ in found.logprob.top] == [3, 2]


ENDS: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, GREEDY_BELOW, 2.0),
    "top_p": (2e-38, 1.0),
    "top_k": (0, 1, 2**31),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "logit_bias": ({}, {0: 100.0, EOS: -100.0}),
}


def test_parameters_at_their_ends_always_choose_a_token() -> None:
    """Alone and together, from logits of any size that float32 has room to adjust."""
    rows = [
        _row(SamplingParams(logprobs=1, **dict(zip(ENDS, values, strict=True))), answer=(1, 2, 2))
        for values in product(*ENDS.values())
    ]
    for scale in (1e-30, 1.0, 1e4, 1e30):
        table = torch.tensor(LOGITS).mul(scale).expand(len(rows), -1)
        draws = sample(table, rows)
        assert {draw.error for draw in draws} == {""}
        assert {draw.token_id for draw in draws} <= set(range(len(LOGITS)))


def test_logits_that_leave_their_range_are_an_error_of_their_row() -> None:
    """What counts are logits after they were adjusted, whatever adjusts them."""
    logits = torch.tensor(LOGITS).mul(1e38).expand(3, -1)
    params = [SamplingParams(repetition_penalty=p, seed=1) for p in (1.0, 0.01, 1.0)]
    first, broken, last = sample(logits, [_row(one) for one in params])
    assert broken.error == "the model returned logits that are not finite"
    assert [first, last] == sample(logits[::2], [_row(params[0])] * 2)
    assert not first.error


class BrokenMask:
    """A grammar that nothing can be asked of."""

    def allowed(self, ahead: tuple[int, ...]) -> bytearray:
        raise KeyError("no such state")

    def push(self, token_id: int) -> None:
        raise AssertionError("no token was allowed")


@pytest.mark.parametrize("how", [{"temperature": 0}, {"seed": 1}, {"logprobs": 2}])
def test_a_row_that_cannot_be_adjusted_fails_alone(how: dict[str, Any]) -> None:
    params = SamplingParams(**how)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    rows = [_row(params) for _ in range(3)]
    expected = sample(logits, rows)
    rows[1].seq.mask = BrokenMask()
    first, broken, last = sample(logits, rows)
    assert broken.error == "KeyError: 'no such state'"
    assert [first, last] == expected[::2]


def test_a_token_outside_the_vocabulary_never_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenllm.runner.sampling._draw", lambda logits, rows: [len(LOGITS), -1])
    params = [SamplingParams(seed=1, logprobs=1)] * 2
    draws = sample(torch.tensor([LOGITS] * 2), [_row(one) for one in params])
    assert [draw.error for draw in draws] == ["no token of the vocabulary was chosen"] * 2


def test_a_prompt_that_cannot_be_scored_fails_alone() -> None:
    scored = SamplingParams(prompt_logprobs=0)
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    chunks = [
        Chunk(_row(scored, prompt=(1, 99)).seq, 0, 2, samples=True),
        Chunk(_row(scored, prompt=(1, 2)).seq, 0, 2, samples=True),
    ]
    broken, fine = read_out(chunks, [range(2), range(2)], logits)
    assert "IndexError" in broken.error or "RuntimeError" in broken.error
    assert (len(fine.prompt), len(fine.token_ids), fine.error) == (1, 1, "")


def test_an_error_names_the_adapter() -> None:
    row = _row(SamplingParams())
    row.seq.request = replace(row.seq.request, adapter=AdapterRef("fox", "digest"))
    [found] = sample(torch.full((1, 50), math.nan), [row])
    assert found.error == "the model with adapter 'fox' returned logits that are not finite"


@pytest.mark.parametrize("ahead", [(), (3,), (3, 3, 2), (EOS, 5)])
def test_a_place_ahead_is_the_place_after_those_tokens(ahead: tuple[int, ...]) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.8},
        {"temperature": 0, "min_tokens": 4, "repetition_penalty": 3.0},
        {"min_tokens": 4, "frequency_penalty": 1.5, "presence_penalty": 0.5},
        {"repetition_penalty": 1.7, "logit_bias": {3: 2.0}, "logprobs": 3},
    ]
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(3)) * 2
    for kind in kinds:
        for seed in range(40):
            params = SamplingParams(seed=seed, **kind)
            before = _row(params, answer=(2, 4), seed=seed)
            after = _row(params, answer=(2, 4, *ahead), seed=seed)
            assert sample(logits, [SamplingPosition(before.seq, ahead)]) == sample(logits, [after])


def test_a_prompt_scored_with_nan_is_an_error() -> None:
    params = SamplingParams(prompt_logprobs=0, max_tokens=0)
    chunk = Chunk(_row(params, prompt=(1, 2, 3)).seq, 0, 3, samples=True)
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    [fine] = read_out([chunk], [range(3)], logits)
    assert (len(fine.prompt), fine.error) == (2, "")
    logits[1, 4] = math.nan
    [found] = read_out([chunk], [range(3)], logits)
    assert found.error == "the model returned logits that are not finite"
