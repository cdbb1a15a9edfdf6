"""Each pass through a model is on the tally of those who were in it, as large as it was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from greenllm.core import (
    AdapterRef,
    Approximation,
    Batch,
    Chunk,
    DraftPass,
    Request,
    Sample,
    SamplingParams,
    sequences_of,
)
from greenllm.energy.account.attribution import Work
from greenllm.energy.account.curve import WIDTHS
from greenllm.energy.account.steps import StepModel
from greenllm.energy.account.tally import Key, WindowTally
from greenllm.exits import ExitOffer, ExitResult
from greenllm.shape import ModelShape

SHAPE = ModelShape(
    body_parameters=1200,
    head_parameters=300,
    num_layers=6,
    attention_width=16,
    kv_bytes_per_token=96,
)
LAYER = 2
FIRST = SHAPE.first(LAYER)
SHARE = 700 / 1500
PROMPT = 5
STEP_S = 0.6


def make_chunk(
    name: str, start: int = 8, num_tokens: int = 1, *, early: bool = False, **fields: Any
) -> Chunk:
    """Tokens of a request whose prompt has five; one that may leave early does so after two."""
    approximation = Approximation(LAYER, 0.5) if early else None
    how = {name: fields.pop(name) for name in ("prompt_logprobs",) if name in fields}
    request = Request(
        name,
        ((1,) * PROMPT,),
        SamplingParams(**how),
        "m",
        approximation=approximation,
        adapter=fields.pop("adapter", None),
    )
    (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=99)
    seq.token_ids += [1] * 40
    shallow, exits = fields.pop("shallow", 0), fields.pop("exits", early)
    offer = ExitOffer(LAYER, 0.5, shallow, exits) if early else None
    return Chunk(seq, start, num_tokens, **{"samples": True, "exit": offer, **fields})


def make_tally() -> WindowTally:
    return WindowTally(SHAPE, StepModel(SHAPE), [1.0] * WIDTHS)


def tally(*steps: Iterable[tuple[Chunk, Sample]]) -> dict[Key, Work]:
    found = make_tally()
    for step in steps:
        chunks, samples = zip(*step, strict=True)
        found.add_step(Batch(chunks), STEP_S, samples)
    return dict(found.works())


def plain(name: str, *where: int, **fields: Any) -> tuple[Chunk, Sample]:
    return make_chunk(name, *where, **fields), Sample((1,))


def leaving(name: str, sure: int = 1, of: int = 1, **fields: Any) -> tuple[Chunk, Sample]:
    """The exit is sure of so many of the tokens that it is asked for."""
    ids = (1,) * (sure + (sure < of))
    return make_chunk(name, early=True, **fields), Sample(ids, exit=ExitResult(sure, of))


def passed(
    shape: ModelShape, start: int, count: int = 1, *, claim: float, seconds: float, logits: int = 1
) -> Work:
    """One pass of a model over a chunk, which is one of 1 / `claim` requests in it."""
    flops = shape.flops(start, count, logits)
    return Work(flops=flops, residence_s=claim * seconds, present_s=seconds)


def same(found: Work, expected: Work) -> bool:
    """But for what it should cost."""
    return (found.flops, found.residence_s, found.present_s) == pytest.approx(
        (expected.flops, expected.residence_s, expected.present_s)
    )


def total(works: dict[Key, Work]) -> Work:
    return sum(works.values(), Work())


def test_the_shape_of_the_first_layers() -> None:
    assert (FIRST.body_parameters, FIRST.head_parameters, FIRST.num_layers) == (400, 300, 2)
    assert FIRST.kv_bytes_per_token == 32
    assert FIRST.num_parameters / SHAPE.num_parameters == SHARE


def test_a_plain_step_is_shared_by_its_requests() -> None:
    works = tally([plain("a"), plain("b", 0, 5)])
    assert set(works) == {("a", "decode"), ("b", "prefill")}
    assert same(works["a", "decode"], passed(SHAPE, 8, claim=0.5, seconds=STEP_S))
    assert same(works["b", "prefill"], passed(SHAPE, 0, 5, claim=0.5, seconds=STEP_S))


def test_a_request_with_two_sequences_is_one_in_a_step() -> None:
    chunk = make_chunk("a")
    found = make_tally()
    found.add_step(Batch((chunk, replace(chunk, start=12), make_chunk("b"))), STEP_S)
    works = dict(found.works())
    one, other = (passed(SHAPE, start, claim=0.5, seconds=STEP_S / 2) for start in (8, 12))
    assert same(works["a", "decode"], one + other)
    assert works["a", "decode"].residence_s == works["b", "decode"].residence_s == STEP_S / 2


@pytest.mark.parametrize("samples", [(), (Sample((1,)), Sample((1,)))])
def test_samples_without_exits_change_nothing(samples: tuple[Sample, ...]) -> None:
    """As without any samples: those of a step that failed."""
    chunks = (make_chunk("a", draft=(1, 2), num_tokens=3), make_chunk("b", 0, 5))
    found = make_tally()
    found.add_step(Batch(chunks), STEP_S, samples)
    works = dict(found.works())
    assert same(works["a", "decode"], passed(SHAPE, 8, 3, claim=0.5, seconds=STEP_S, logits=3))
    assert same(works["b", "prefill"], passed(SHAPE, 0, 5, claim=0.5, seconds=STEP_S))


def test_scored_prompts_adapters_and_chunks_without_logits_count_as_before() -> None:
    adapter = AdapterRef("x", "d", num_parameters=70)
    works = tally(
        [
            plain("scored", 0, 4, prompt_logprobs=0),
            plain("adapted", 0, 3, adapter=adapter),
            plain("part", 0, 2, samples=False),
            plain("later", 8, 1, prompt_logprobs=0),
        ]
    )
    flops = {name: work.flops for (name, _), work in works.items()}
    assert flops == {
        "scored": SHAPE.flops(0, 4, 4),
        "adapted": SHAPE.flops(0, 3, 1) + 2 * 70 * 3,
        "part": SHAPE.flops(0, 2, 0),
        "later": SHAPE.flops(8, 1, 1),
    }


def test_who_leaves_pays_for_the_first_layers_only() -> None:
    works = tally([leaving("a"), leaving("b", start=20)])
    for name, start in (("a", 8), ("b", 20)):
        assert same(works[name, "decode"], passed(FIRST, start, claim=0.5, seconds=STEP_S))


def test_who_goes_on_pays_for_both_passes_and_the_other_claims_nothing_of_the_second() -> None:
    works = tally([leaving("left"), leaving("stays", 0, start=11, shallow=3)])
    first_s = STEP_S * SHARE / (SHARE + 1)
    first = {s: passed(FIRST, s, claim=0.5, seconds=first_s) for s in (8, 11)}
    whole = passed(SHAPE, 8, 4, claim=1, seconds=STEP_S - first_s)
    assert same(works["left", "decode"], first[8])
    assert same(works["stays", "decode"], first[11] + whole)


def test_plain_requests_beside_pay_for_the_whole_pass_only() -> None:
    works = tally([plain("plain"), leaving("left"), leaving("stays", 0), plain("new", 0, 5)])
    first_s = STEP_S * SHARE / (SHARE + 1)
    third = partial(passed, SHAPE, claim=1 / 3, seconds=STEP_S - first_s)
    assert same(works["plain", "decode"], third(8))
    assert same(works["new", "prefill"], third(0, 5))
    half = passed(FIRST, 8, claim=0.5, seconds=first_s)
    assert same(works["left", "decode"], half)
    assert same(works["stays", "decode"], half + third(8))


def test_who_may_not_leave_any_more_pays_for_what_had_left() -> None:
    """In a step without an exit, and in one with."""
    chunk = make_chunk("full", 24, early=True, exits=False, shallow=16)
    whole = [(chunk, Sample((1,)))]
    alone = tally(whole)["full", "decode"]
    assert same(alone, passed(SHAPE, 8, 17, claim=1, seconds=STEP_S))
    beside = tally([*whole, leaving("left")])["full", "decode"]
    assert beside.flops == alone.flops
    assert beside.residence_s == pytest.approx(STEP_S / (1 + SHARE))


def test_several_tokens_take_a_step_of_the_first_layers_each() -> None:
    works = tally([leaving("a", 4, 4)])
    steps = [passed(FIRST, start, claim=1, seconds=STEP_S / 4) for start in range(8, 12)]
    assert same(works["a", "decode"], sum(steps, Work()))


def test_tokens_that_left_run_through_all_layers_with_the_one_that_did_not() -> None:
    works = tally([leaving("a", 2, 4, start=12, shallow=4)])
    first_s = STEP_S * 4 * SHARE / (4 * SHARE + 1)
    steps = [passed(FIRST, start, claim=1, seconds=first_s / 4) for start in range(12, 16)]
    whole = passed(SHAPE, 8, 4 + 1 + 2, claim=1, seconds=STEP_S - first_s)
    assert same(works["a", "decode"], sum([*steps, whole], Work()))


def test_one_token_of_a_request_claims_no_part_of_another_ones_four() -> None:
    works = tally([leaving("one"), leaving("four", 4, 4)])
    assert same(works["one", "decode"], passed(FIRST, 8, claim=1, seconds=STEP_S / 5))
    assert works["four", "decode"].residence_s == pytest.approx(STEP_S * 4 / 5)


def test_all_layers_are_paid_for_where_they_failed() -> None:
    chunk, _ = leaving("a")
    failed = Sample((1, 1), exit=ExitResult(2, 4), error="no numbers")
    work = tally([(chunk, failed)])["a", "decode"]
    early = sum(FIRST.flops(start, 1, 1) for start in range(8, 12))
    assert work.flops > early + SHAPE.flops(8, 1, 1)


STEPS = {
    "plain": [plain("a"), plain("b", 0, 5)],
    "all leave": [leaving("a"), leaving("b")],
    "some stay": [plain("a"), leaving("b"), leaving("c", 0, shallow=2)],
    "several": [leaving("a", 4, 4), leaving("b", 1, 4), plain("c", 0, 3)],
    "all kinds": [
        plain("a"),
        leaving("b"),
        leaving("c", 0),
        leaving("d", 4, 4),
        leaving("e", 2, 4),
    ],
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_residence_and_claims_are_the_time_of_the_step(step: list[tuple[Chunk, Sample]]) -> None:
    found = total(tally(step))
    assert found.residence_s == pytest.approx(STEP_S)
    assert found.claim_j == pytest.approx(STEP_S), "at a watt"
    assert total(tally(step, step)).residence_s == pytest.approx(2 * STEP_S)
    chunks, samples = zip(*step, strict=True)
    noted = make_tally()
    noted.add_step(Batch(chunks), STEP_S, samples)
    assert sum(noted.busy_s) == pytest.approx(STEP_S)


def test_an_exit_that_nobody_named_is_refused() -> None:
    with pytest.raises(ValueError, match="only where its request allows it"):
        tally([(make_chunk("a"), Sample((1,), exit=ExitResult(1, 1)))])


def drafted(*passes: DraftPass) -> dict[Key, Work]:
    found = make_tally()
    found.add_draft([chunk for one in passes for chunk in one.chunks], passes, FIRST, STEP_S)
    return dict(found.works())


def test_a_guess_is_paid_for_by_those_in_its_pass() -> None:
    """One wants sixteen guesses, the other one: it is in the first pass and in no other."""
    many, one = make_chunk("many"), make_chunk("one", start=20)
    later = replace(many, start=many.end)
    works = drafted(DraftPass((many, one)), DraftPass((later,), 15))
    assert works["one", "draft"].residence_s == pytest.approx(STEP_S / 16 / 2)
    assert same(works["one", "draft"], passed(FIRST, 20, claim=0.5, seconds=STEP_S / 16))


def test_unseen_tokens_run_with_the_newest_and_are_no_step_of_their_own() -> None:
    chunk = make_chunk("a", num_tokens=2)
    work = drafted(DraftPass((chunk,), 4))["a", "draft"]
    steps = [passed(FIRST, 8, 2, claim=1, seconds=STEP_S / 4)]
    steps += [passed(FIRST, place, claim=1, seconds=STEP_S / 4) for place in (10, 11, 12)]
    assert same(work, sum(steps, Work()))


def test_asking_in_vain_takes_time_and_no_work() -> None:
    found = make_tally()
    found.add_draft([make_chunk("a"), make_chunk("b")], [], FIRST, STEP_S)
    works = dict(found.works())
    assert all((work.flops, work.claim_j) == (0, 0) for work in works.values())
    assert sum(work.residence_s for work in works.values()) == pytest.approx(STEP_S)
