"""Batches stay within their budgets, blocks come back, and company changes nobody's answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from greenllm.core import (
    AdapterRef,
    Approximation,
    Batch,
    Request,
    Sample,
    Sequence,
    Token,
    sequences_of,
)
from greenllm.engine.blocks import BlockManager
from greenllm.engine.scheduler import Scheduler
from greenllm.exits import EXIT_RUN, MOST_PENDING, ExitResult, ExitState
from greenllm.runner.base import Runner
from tests.fake_engine import alone, letters, make_request, make_runner

EOS = 0


def make_scheduler(
    num_blocks: int = 32, block_size: int = 4, *, prefix_cache: bool = True, **options: Any
) -> Scheduler:
    blocks = BlockManager(num_blocks, block_size, prefix_cache=prefix_cache)
    values = {"max_num_seqs": 4, "max_batch_tokens": 16, "clock": lambda: 0.0, **options}
    return Scheduler(blocks, **values)


def add(scheduler: Scheduler, request: Request) -> list[Sequence]:
    sequences = sequences_of(request, eos_token_ids=frozenset({EOS}), max_len=64)
    for seq in sequences:
        scheduler.add(seq)
    return sequences


def turn(scheduler: Scheduler, token_id: int | None = 1) -> tuple[Batch, list[Token]]:
    """One step of a model that always says the same."""
    batch = scheduler.schedule()
    return batch, scheduler.commit(
        batch, [Sample(() if token_id is None else (token_id,)) for _ in batch.chunks]
    )


def shape(batch: Batch) -> list[tuple[str, int, int]]:
    return [(c.seq.request.request_id, c.start, c.num_tokens) for c in batch.chunks]


def test_a_budget_below_the_number_of_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="at least max_num_seqs"):
        make_scheduler(max_num_seqs=5, max_batch_tokens=4)


def test_what_cannot_fit_alone_is_refused() -> None:
    scheduler = make_scheduler(num_blocks=2, block_size=4)
    add(scheduler, make_request("fits", [1] * 6, max_tokens=2))
    with pytest.raises(ValueError, match="9 tokens exceed the KV cache"):
        add(scheduler, make_request("too long", [1] * 6, max_tokens=3))
    assert len(scheduler.waiting) == 1


def test_decoding_goes_first_and_prompts_share_the_rest() -> None:
    scheduler = make_scheduler(max_num_seqs=3, max_batch_tokens=6)
    add(scheduler, make_request("a", [1] * 4))
    assert shape(turn(scheduler)[0]) == [("a", 0, 4)]
    add(scheduler, make_request("b", [2] * 8))
    add(scheduler, make_request("c", [3] * 2))
    add(scheduler, make_request("d", [4] * 2))
    assert shape(turn(scheduler)[0]) == [("a", 4, 1), ("b", 0, 5)]
    assert shape(turn(scheduler)[0]) == [("a", 5, 1), ("b", 5, 3), ("c", 0, 2)]
    assert shape(turn(scheduler)[0]) == [("a", 6, 1), ("b", 8, 1), ("c", 2, 1)]
    assert [seq.request.request_id for seq in scheduler.waiting] == ["d"]


def test_only_the_end_of_a_prompt_samples() -> None:
    scheduler = make_scheduler(max_num_seqs=1, max_batch_tokens=3)
    (seq,) = add(scheduler, make_request("a", [1] * 7))
    seen = [turn(scheduler) for _ in range(3)]
    assert [[chunk.samples for chunk in batch.chunks] for batch, _ in seen] == [
        [False],
        [False],
        [True],
    ]
    assert [len(tokens) for _, tokens in seen] == [0, 0, 1]
    assert seq.num_generated == 1


@pytest.mark.parametrize(("prefix_cache", "cached"), [(True, 8), (False, 0)])
def test_a_known_prefix_is_not_computed_again(prefix_cache: bool, cached: int) -> None:
    scheduler = make_scheduler(prefix_cache=prefix_cache)
    (first,) = add(scheduler, make_request("a", [1] * 10))
    turn(scheduler)
    (second,) = add(scheduler, make_request("b", [1] * 10))
    batch, _ = turn(scheduler)
    assert shape(batch) == [("a", 10, 1), ("b", cached, 10 - cached)]
    assert (first.num_cached, second.num_cached) == (0, cached)
    assert (second.block_table[:2] == first.block_table[:2]) is prefix_cache


@pytest.mark.parametrize(
    ("prompt", "cached", "is_copied"),
    [
        ([1] * 4 + [2] * 4, 7, True),
        ([1] * 4 + [2, 2, 3, 3, 3], 6, True),
        ([1] * 4 + [3] * 4, 4, False),
        ([1, 1, 3], 2, True),
    ],
)
def test_where_a_remembered_block_fits_in_part_that_part_is_copied(
    prompt: list[int], cached: int, is_copied: bool
) -> None:
    scheduler = make_scheduler()
    (first,) = add(scheduler, make_request("a", [1] * 4 + [2] * 4 + [9]))
    turn(scheduler)
    (second,) = add(scheduler, make_request("b", prompt))
    table = list(first.block_table)
    batch, _ = turn(scheduler)
    assert shape(batch) == [("a", 9, 1), ("b", cached, len(prompt) - cached)]
    place = cached // 4
    assert batch.copies == (((table[place], second.block_table[place]),) if is_copied else ())
    assert (second.block_table[place] != table[place]) or not is_copied


def test_a_scored_prompt_copies_nothing() -> None:
    scheduler = make_scheduler()
    add(scheduler, make_request("a", [1] * 9))
    turn(scheduler)
    add(scheduler, make_request("b", [1] * 8, prompt_logprobs=0))
    batch, _ = turn(scheduler)
    assert batch.copies == ()
    assert shape(batch)[1] == ("b", 0, 8)


def test_what_was_not_computed_before_an_abort_is_not_found() -> None:
    scheduler = make_scheduler(max_num_seqs=2, max_batch_tokens=6)
    add(scheduler, make_request("a", [1] * 15))
    turn(scheduler)
    scheduler.abort("a")
    (seq,) = add(scheduler, make_request("b", [1] * 15))
    assert shape(turn(scheduler)[0]) == [("b", 4, 6)]
    assert seq.num_cached == 4


def test_generated_tokens_are_found_again_in_the_next_turn_of_a_talk() -> None:
    scheduler = make_scheduler()
    add(scheduler, make_request("a", [2] * 3, max_tokens=6))
    while scheduler.has_work:
        turn(scheduler, 5)
    (seq,) = add(scheduler, make_request("b", [2, 2, 2, 5, 5, 5, 5, 5, 5, 3]))
    turn(scheduler)
    assert seq.num_cached == 8


@pytest.mark.parametrize(
    ("one", "other"), [(None, "x"), ("x", "y"), ("p" * 64 + "x", "p" * 64 + "y")]
)
def test_adapters_share_no_blocks(one: str | None, other: str) -> None:
    scheduler = make_scheduler()
    cached: list[int | None] = []
    for adapter in (one, other, one, other):
        (seq,) = add(scheduler, make_request("r", [1] * 9, adapter=adapter, max_tokens=1))
        turn(scheduler)
        cached.append(seq.num_cached)
    assert cached == [0, 0, 8, 8]


def test_another_adapter_of_the_same_name_shares_no_blocks() -> None:
    scheduler = make_scheduler()
    cached: list[int | None] = []
    for digest in ("old", "new", "old"):
        request = replace(make_request("r", [1] * 9), adapter=AdapterRef("x", digest))
        (seq,) = add(scheduler, request)
        turn(scheduler)
        scheduler.abort("r")
        cached.append(seq.num_cached)
    assert cached == [0, 0, 8]


def test_siblings_wait_for_their_leader_and_reuse_its_prompt() -> None:
    scheduler = make_scheduler(max_batch_tokens=6)
    leader, second, third = add(scheduler, make_request("a", [1] * 9, n=3))
    assert shape(turn(scheduler)[0]) == [("a", 0, 6)]
    assert shape(turn(scheduler)[0]) == [("a", 6, 3)]
    assert [second.num_cached, third.num_cached] == [None, None]
    assert shape(turn(scheduler)[0]) == [("a", 9, 1), ("a", 8, 1), ("a", 8, 1)]
    assert [leader.num_cached, second.num_cached, third.num_cached] == [0, 8, 8]


def test_siblings_do_not_wait_for_a_leader_that_has_ended() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    leader, second = add(scheduler, make_request("a", [1] * 9, n=2, max_tokens=1))
    _, tokens = turn(scheduler)
    assert [(token.index, token.finish_reason) for token in tokens] == [(0, "length")]
    assert (leader.is_finished, second.num_computed) == (True, 0)
    _, tokens = turn(scheduler)
    assert [(token.index, token.finish_reason) for token in tokens] == [(1, "length")]
    assert not scheduler.has_work


def test_the_youngest_is_preempted_and_resumes_where_it_was() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=2, max_num_seqs=2)
    (old,) = add(scheduler, make_request("old", [1] * 2, max_tokens=7))
    (young,) = add(scheduler, make_request("young", [2] * 3, max_tokens=5))
    turn(scheduler)
    turn(scheduler)
    turn(scheduler)
    assert [len(old.block_table), len(young.block_table)] == [2, 3]
    batch, _ = turn(scheduler)
    assert shape(batch) == [("old", 4, 1)]
    assert scheduler.num_preemptions == 1
    assert list(scheduler.waiting) == [young]
    assert (young.block_table, young.num_computed, young.num_generated) == ([], 0, 3)
    while not old.is_finished:
        assert young not in scheduler.running
        turn(scheduler)
    batch, tokens = turn(scheduler)
    assert [chunk.end for chunk in batch.chunks] == [6]
    assert young.num_generated == 4
    assert [token.request_id for token in tokens] == ["young"]
    assert young.num_cached == 0


def test_the_preempted_go_to_the_front_of_the_queue() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=2, max_num_seqs=2)
    add(scheduler, make_request("old", [1] * 2, max_tokens=7))
    (young,) = add(scheduler, make_request("young", [2] * 3, max_tokens=5))
    (waiting,) = add(scheduler, make_request("waiting", [3] * 9, max_tokens=1))
    for _ in range(4):
        turn(scheduler)
    assert scheduler.num_preemptions == 1
    assert list(scheduler.waiting) == [young, waiting]


def test_a_sequence_may_have_to_preempt_itself() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2, max_num_seqs=2)
    (old,) = add(scheduler, make_request("old", [1] * 3, max_tokens=5))
    (young,) = add(scheduler, make_request("young", [2] * 2, max_tokens=4))
    turn(scheduler)
    assert shape(turn(scheduler)[0]) == [("old", 3, 1), ("young", 2, 1)]
    assert shape(turn(scheduler)[0]) == [("old", 4, 1)]
    assert list(scheduler.waiting) == [young]
    assert shape(turn(scheduler)[0]) == [("old", 5, 1)]
    assert not old.is_finished


def test_newcomers_leave_a_block_for_everybody_who_runs() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2, max_num_seqs=4)
    add(scheduler, make_request("a", [1] * 2, max_tokens=6))
    add(scheduler, make_request("b", [2] * 2, max_tokens=2))
    add(scheduler, make_request("c", [3] * 2, max_tokens=2))
    assert shape(turn(scheduler)[0]) == [("a", 0, 2), ("b", 0, 2)]


def test_nobody_is_admitted_in_a_step_that_preempted() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=2, max_num_seqs=3)
    add(scheduler, make_request("old", [1] * 2, max_tokens=7))
    add(scheduler, make_request("young", [2] * 3, max_tokens=5))
    for _ in range(3):
        turn(scheduler)
    add(scheduler, make_request("new", [3], max_tokens=1))
    assert shape(turn(scheduler)[0]) == [("old", 4, 1)]
    assert shape(turn(scheduler)[0]) == [("old", 5, 1), ("new", 0, 1)]


def test_a_head_that_does_not_fit_is_overtaken_only_for_a_while() -> None:
    now_s = 0.0
    scheduler = make_scheduler(
        num_blocks=6, block_size=2, max_num_seqs=8, clock=lambda: now_s, max_overtaken_s=1.0
    )
    (holder,) = add(scheduler, make_request("holder", [1] * 4, max_tokens=4))
    turn(scheduler)
    (large,) = add(scheduler, make_request("large", [2] * 8, max_tokens=1))
    (small,) = add(scheduler, make_request("small", [3], max_tokens=1))
    turn(scheduler)
    assert small.finish_reason == "length"
    now_s = 1.0
    (late,) = add(scheduler, make_request("late", [4], max_tokens=1))
    turn(scheduler)
    turn(scheduler)
    assert holder.is_finished
    assert list(scheduler.waiting) == [large, late]
    batch, _ = turn(scheduler)
    assert shape(batch) == [("large", 0, 8), ("late", 0, 1)]


@pytest.mark.parametrize(
    ("sampling", "model", "generated", "reason"),
    [
        ({"max_tokens": 3}, [1, 2, 3], [1, 2, 3], "length"),
        ({}, [1, EOS], [1, EOS], "stop"),
        ({"max_tokens": 2}, [1, EOS], [1, EOS], "stop"),
        ({"max_tokens": 3, "ignore_eos": True}, [1, EOS, EOS], [1, EOS, EOS], "length"),
        ({"min_tokens": 2}, [EOS, 1, EOS], [EOS, 1, EOS], "stop"),
        ({"min_tokens": 2}, [EOS, EOS], [EOS, EOS], "stop"),
        ({"stop_token_ids": (5, 6)}, [1, 6], [1, 6], "stop"),
        ({"stop_token_ids": (5,), "min_tokens": 3}, [5, 5, 1, 5], [5, 5, 1, 5], "stop"),
        ({"stop_token_ids": (EOS,), "ignore_eos": True}, [EOS], [EOS], "stop"),
        ({"stop_token_ids": (EOS,), "min_tokens": 2}, [EOS, EOS], [EOS, EOS], "stop"),
    ],
)
def test_ends(
    sampling: dict[str, Any], model: list[int], generated: list[int], reason: str
) -> None:
    scheduler = make_scheduler()
    (seq,) = add(scheduler, make_request("a", [1] * 3, **sampling))
    sent = [turn(scheduler, token_id)[1][0] for token_id in model]
    assert [token.token_id for token in sent] == generated == seq.token_ids[3:]
    assert [token.finish_reason for token in sent] == [None] * (len(model) - 1) + [reason]
    assert not scheduler.has_work
    assert scheduler.blocks.num_free == 32
    assert seq.output_counts == {token: generated.count(token) for token in generated}


def test_the_context_ends_an_answer() -> None:
    scheduler = make_scheduler()
    request = make_request("a", [1] * 3, max_tokens=9)
    (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=5)
    scheduler.add(seq)
    turn(scheduler)
    assert turn(scheduler)[1][0].finish_reason == "length"
    assert len(seq.token_ids) == 5


def test_stop_strings_and_held_back_text() -> None:
    def texts(stop: str, *model: int, **sampling: Any) -> list[tuple[str, str | None]]:
        scheduler = make_scheduler()
        (seq,) = add(scheduler, make_request("a", [1], stop=(stop,), **sampling))
        seq.text = letters(seq.sampling)
        sent = [turn(scheduler, token_id)[1][0] for token_id in model]
        assert not scheduler.has_work
        return [(token.text, token.finish_reason) for token in sent]

    assert texts("cd", 1, 2, 3) == [("b", None), ("", None), ("", "stop")]
    assert texts("cd", 1, 2, max_tokens=2) == [("b", None), ("c", "length")]
    assert texts("cd", 2, EOS) == [("", None), ("c", "stop")]
    assert texts("b", 1, 1, min_tokens=2) == [("b", None), ("", "stop")]


def test_max_tokens_0_only_scores_the_prompt() -> None:
    scheduler = make_scheduler(max_num_seqs=1, max_batch_tokens=2)
    request = make_request("a", (1, 2, 3, 4, 5), max_tokens=0, prompt_logprobs=0)
    add(scheduler, request)
    (token,) = finish(scheduler, make_runner())
    assert (token.token_id, token.finish_reason) == (None, "length")
    assert token.prompt_logprobs == alone(request)[0][2]
    assert len(token.prompt_logprobs) == 4


def finish(scheduler: Scheduler, runner: Runner) -> list[Token]:
    tokens: list[Token] = []
    for _ in range(100):
        batch = scheduler.schedule()
        runner.copy_blocks(batch.copies)
        tokens += scheduler.commit(batch, runner.run(batch))
        if not scheduler.has_work:
            return tokens
    pytest.fail("the scheduler does not come to an end")


def test_scored_prompts_use_no_cache_and_survive_preemption() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=2, max_num_seqs=2, max_batch_tokens=3)
    runner = make_runner(num_blocks=5, block_size=2)
    scored = make_request("s", [1] * 5, prompt_logprobs=0, max_tokens=4, ignore_eos=True)
    (old,) = add(scheduler, make_request("o", [1] * 2, max_tokens=7, ignore_eos=True))
    (seq,) = add(scheduler, scored)
    tokens = finish(scheduler, runner)
    assert scheduler.num_preemptions > 0
    assert seq.num_cached == 0
    generated, reason, scores = alone(scored)[0]
    sent = [token for token in tokens if token.request_id == "s"]
    assert [token.token_id for token in sent] == generated
    assert [token.prompt_logprobs for token in sent] == [scores, (), (), ()]
    assert sent[-1].finish_reason == reason
    assert tuple(seq.prompt_logprobs) == scores
    assert old.finish_reason == "length"


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_abort_ends_waiting_and_running_sequences_alike(steps: int) -> None:
    scheduler = make_scheduler(max_num_seqs=2, max_batch_tokens=4)
    (other,) = add(scheduler, make_request("other", [5]))
    sequences = add(scheduler, make_request("a", [1] * 9, [2], n=2))
    for _ in range(steps):
        turn(scheduler)
    tokens = scheduler.abort("a", "error")
    assert sorted(token.index for token in tokens) == [0, 1, 2, 3]
    assert {(t.request_id, t.token_id, t.finish_reason) for t in tokens} == {("a", None, "error")}
    assert {seq.finish_reason for seq in sequences} == {"error"}
    assert [*scheduler.running, *scheduler.waiting] == [other]
    assert scheduler.abort("a") == scheduler.abort("never seen") == []
    while scheduler.has_work:
        turn(scheduler)
    assert scheduler.blocks.num_free == 32
    assert other.finish_reason == "length"


def test_room_for_guesses_takes_nothing_from_newcomers() -> None:
    scheduler = make_scheduler(num_drafts=lambda seq: 5)
    for name in "abc":
        add(scheduler, make_request(name, [1] * 3, max_tokens=30))
    turn(scheduler)
    add(scheduler, make_request("d", [1] * 11, max_tokens=30))
    batch, _ = turn(scheduler)
    assert shape(batch) == [("a", 3, 1), ("b", 3, 1), ("c", 3, 1), ("d", 0, 11)]
    assert [chunk.room for chunk in batch.chunks] == [2, 0, 0, 0]


def test_a_mask_is_told_every_token_of_its_answer() -> None:
    told: list[int] = []

    class Mask:
        def allowed(self, ahead: tuple[int, ...]) -> bytearray:
            return bytearray()

        def push(self, token_id: int) -> None:
            told.append(token_id)

    scheduler = make_scheduler()
    (seq,) = add(scheduler, make_request("a", [1] * 3, max_tokens=3))
    seq.mask = Mask()
    for token_id in (4, 5, 6):
        turn(scheduler, token_id)
    assert (told, seq.is_finished) == ([4, 5, 6], True)


@pytest.fixture
def ask_early() -> Callable[..., Request]:
    """Builds a request whose tokens may leave the model early."""

    def ask(name: str, prompt: list[int], **sampling: Any) -> Request:
        request = make_request(name, prompt, **{"ignore_eos": True, **sampling})
        return replace(request, approximation=Approximation(1, 0.5))

    return ask


def leave(scheduler: Scheduler, *exited: int) -> Batch:
    """A step in which the exit is sure of so many tokens of each chunk that it is asked for.

    It is asked for as many as there is room for; where it is not sure of all, another one follows
    that all layers have said.
    """
    batch, counts = scheduler.schedule(), iter(exited)
    samples = []
    for chunk in batch.chunks:
        wanted = (EXIT_RUN if chunk.room >= EXIT_RUN - 1 else 1) if chunk.may_exit else 0
        sure = min(wanted, next(counts, wanted))
        left = 0 < sure == wanted
        result = ExitResult(sure, wanted) if wanted else None
        samples.append(Sample((1,) * (sure + (not left)), exit=result))
    scheduler.commit(batch, samples)
    return batch


def exit_of(seq: Sequence) -> ExitState:
    assert seq.exit is not None
    return seq.exit


def marks(batch: Batch) -> list[tuple[bool, int]]:
    return [(chunk.may_exit, chunk.exit.num_pending if chunk.exit else 0) for chunk in batch.chunks]


def test_only_newest_tokens_of_approximate_answers_may_leave(
    ask_early: Callable[..., Request],
) -> None:
    scheduler = make_scheduler(max_batch_tokens=6)
    add(scheduler, ask_early("early", [1] * 8))
    add(scheduler, make_request("plain", [2] * 2))
    assert marks(leave(scheduler)) == [(False, 0)]
    batch = leave(scheduler)
    assert shape(batch) == [("early", 6, 2), ("plain", 0, 2)]
    assert marks(batch) == [(False, 0), (False, 0)]
    batch = leave(scheduler)
    assert shape(batch) == [("early", 8, 1), ("plain", 2, 1)]
    assert marks(batch) == [(True, 0), (False, 0)]
    batch = leave(scheduler)
    assert shape(batch) == [("early", 9, 1), ("plain", 3, 1)]
    assert marks(batch) == [(True, 1), (False, 0)]


def test_what_left_waits_until_a_token_runs_through_all_layers(
    ask_early: Callable[..., Request],
) -> None:
    scheduler = make_scheduler()
    (seq,) = add(scheduler, ask_early("a", [1] * 3, max_tokens=30))
    turn(scheduler)
    seen = [
        (marks(leave(scheduler, sure))[0], exit_of(seq).num_pending) for sure in (1, 1, 1, 0, 0, 1)
    ]
    assert [shallow for _, shallow in seen] == [1, 2, 3, 0, 0, 1]
    assert [mark for mark, _ in seen] == [
        (True, 0), (True, 1), (True, 2), (True, 3), (True, 0), (True, 0),
    ]  # fmt: skip
    assert (exit_of(seq).num_exited, seq.num_generated, seq.num_computed) == (4, 7, 9)


def test_after_so_many_that_left_all_layers_are_asked(ask_early: Callable[..., Request]) -> None:
    scheduler = make_scheduler(max_batch_tokens=MOST_PENDING + 8)
    (seq,) = add(scheduler, ask_early("a", [1] * 3, max_tokens=50))
    turn(scheduler)
    found = [marks(leave(scheduler))[0] for _ in range(2 * MOST_PENDING + 3)]
    cycle = [*((True, count) for count in range(MOST_PENDING)), (False, MOST_PENDING)]
    assert found == [*cycle, *cycle, (True, 0)]
    assert exit_of(seq).num_exited == 2 * MOST_PENDING + 1


def test_several_tokens_leave_in_one_step(ask_early: Callable[..., Request]) -> None:
    scheduler = make_scheduler(max_batch_tokens=64, num_drafts=lambda seq: EXIT_RUN - 1)
    (seq,) = add(scheduler, ask_early("a", [1] * 3, max_tokens=50))
    turn(scheduler)
    shallow, length = [], []
    for sure in (4, 4, 2, 4, 0):
        leave(scheduler, sure)
        shallow.append(exit_of(seq).num_pending)
        length.append(seq.num_generated)
        assert seq.in_decode
    assert shallow == [4, 8, 0, 4, 0]
    assert length == [5, 9, 12, 16, 17]
    assert exit_of(seq).num_exited == 14
    assert seq.num_computed == 3 + 17 - 1


def test_few_more_wait_where_several_leave_in_one_step(ask_early: Callable[..., Request]) -> None:
    scheduler = make_scheduler(max_batch_tokens=64, num_drafts=lambda seq: EXIT_RUN - 1)
    (seq,) = add(scheduler, ask_early("a", [1] * 3, max_tokens=58))
    turn(scheduler)
    while not seq.is_finished:
        batch = leave(scheduler)
        ((may_exit, pending),) = marks(batch)
        assert pending < MOST_PENDING + EXIT_RUN
        assert may_exit == (pending < MOST_PENDING)


def test_an_answer_ends_among_the_tokens_that_left(ask_early: Callable[..., Request]) -> None:
    scheduler = make_scheduler(num_drafts=lambda seq: EXIT_RUN - 1)
    (seq,) = add(scheduler, ask_early("a", [1] * 3, max_tokens=20, stop_token_ids=(6,)))
    turn(scheduler)
    batch = scheduler.schedule()
    assert batch.chunks[0].room == EXIT_RUN - 1
    sample = Sample((1, 6, 1, 1), exit=ExitResult(4, 4))
    tokens = scheduler.commit(batch, [sample])
    assert [token.token_id for token in tokens] == [1, 6]
    assert (seq.finish_reason, exit_of(seq).num_exited, seq.num_generated) == ("stop", 2, 3)
    assert not scheduler.has_work
    assert scheduler.blocks.num_free == 32


def test_tokens_that_wait_keep_no_newcomer_waiting(ask_early: Callable[..., Request]) -> None:
    scheduler = make_scheduler(max_batch_tokens=6)
    add(scheduler, ask_early("a", [1] * 3, max_tokens=40))
    for _ in range(9):
        leave(scheduler)
    add(scheduler, make_request("b", [2] * 9))
    batch = leave(scheduler)
    assert marks(batch)[0] == (True, 8)
    assert shape(batch) == [("a", 11, 1), ("b", 0, 5)]


def test_what_must_not_exit_gets_no_room(ask_early: Callable[..., Request]) -> None:
    scheduler = make_scheduler(num_drafts=lambda seq: EXIT_RUN - 1, max_batch_tokens=40)
    (early,) = add(scheduler, ask_early("a", [1] * 3, max_tokens=60))
    rooms: list[tuple[bool, bool]] = []
    while exit_of(early).num_pending <= MOST_PENDING and len(rooms) < 20:
        batch = leave(scheduler)
        rooms += [(chunk.may_exit, chunk.room > 0) for chunk in batch.chunks if chunk.start > 2]
    assert (True, True) in rooms
    assert (False, False) in rooms
    assert (False, True) not in rooms


def test_preemption_leaves_nothing_waiting(ask_early: Callable[..., Request]) -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=2, max_num_seqs=2)
    (old,) = add(scheduler, ask_early("old", [1] * 2, max_tokens=7))
    (young,) = add(scheduler, ask_early("young", [2] * 3, max_tokens=5))
    for _ in range(3):
        leave(scheduler)
    assert exit_of(old).num_pending == 2
    assert (exit_of(young).num_pending, exit_of(young).num_exited) == (2, 2)
    leave(scheduler)
    assert list(scheduler.waiting) == [young]
    assert (exit_of(young).num_pending, young.num_computed, exit_of(young).num_exited) == (0, 0, 2)
    while not old.is_finished:
        leave(scheduler)
    batch = leave(scheduler)
    (chunk,) = batch.chunks
    assert (chunk.end, marks(batch)) == (6, [(False, 0)])
    assert marks(leave(scheduler)) == [(True, 0)]
    assert young.finish_reason == "length"


@pytest.mark.parametrize("num_drafts", [0, EXIT_RUN - 1])
def test_only_the_prompt_of_an_approximate_answer_is_remembered(
    ask_early: Callable[..., Request], num_drafts: int
) -> None:
    scheduler = make_scheduler(num_drafts=lambda seq: num_drafts, max_batch_tokens=40)
    (early,) = add(scheduler, ask_early("a", [2] * 5, max_tokens=20))
    while scheduler.has_work:
        leave(scheduler)
    assert exit_of(early).num_exited
    (same_prompt,) = add(scheduler, make_request("b", [2] * 5, max_tokens=1))
    turn(scheduler)
    (goes_on,) = add(scheduler, make_request("c", [*early.token_ids, 3], max_tokens=1))
    turn(scheduler)
    assert (same_prompt.num_cached, goes_on.num_cached) == (4, 4)


def test_what_all_layers_computed_of_it_is_not_remembered_either(
    ask_early: Callable[..., Request],
) -> None:
    """Those blocks are complete, but they are not told apart from the others."""
    scheduler = make_scheduler()
    (early,) = add(scheduler, ask_early("a", [2] * 3, max_tokens=9))
    while scheduler.has_work:
        leave(scheduler, 0)
    assert exit_of(early).num_exited == 0
    (seq,) = add(scheduler, make_request("b", [*early.token_ids, 3], max_tokens=1))
    turn(scheduler)
    assert seq.num_cached == 0


def test_an_approximate_answer_uses_what_others_have_left(
    ask_early: Callable[..., Request],
) -> None:
    scheduler = make_scheduler()
    add(scheduler, make_request("a", [2] * 3, max_tokens=8, ignore_eos=True))
    while scheduler.has_work:
        turn(scheduler, 1)
    (seq,) = add(scheduler, ask_early("b", [2] * 3 + [1] * 8, max_tokens=4))
    turn(scheduler)
    assert seq.num_cached == 8


@pytest.mark.parametrize(
    ("mine", "theirs"), [("ada", "bob"), ("ada", None), (None, "ada"), ("fox", None)]
)
@pytest.mark.parametrize("adapter", [None, "fox"])
def test_prompts_are_found_with_the_same_salt_only(
    mine: str | None, theirs: str | None, adapter: str | None
) -> None:
    scheduler, prompt = make_scheduler(), list(range(1, 13))
    request = make_request("a", prompt, max_tokens=1, adapter=adapter)

    def cached(salt: str | None) -> int | None:
        (seq,) = add(scheduler, replace(request, cache_salt=salt))
        while not seq.is_finished:
            turn(scheduler)
        return seq.num_cached

    assert cached(mine) == 0
    assert cached(theirs) == 0
    assert cached(mine) == 11


def test_a_salt_is_not_taken_for_an_adapter() -> None:
    scheduler, prompt = make_scheduler(), list(range(1, 13))
    (adapted,) = add(scheduler, make_request("a", prompt, max_tokens=1, adapter="fox"))
    turn(scheduler)
    salted = replace(make_request("b", prompt, max_tokens=1), cache_salt="digest of fox")
    (other,) = add(scheduler, salted)
    turn(scheduler)
    assert (adapted.num_cached, other.num_cached) == (0, 0)
