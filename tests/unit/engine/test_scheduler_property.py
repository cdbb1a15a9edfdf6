"""Whatever comes, goes and gets in the way: every answer is the one the model gives alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from greenllm.core import (
    AdapterRef,
    Batch,
    Chunk,
    Request,
    SamplingParams,
    Sequence,
    Token,
    sequences_of,
)
from greenllm.engine.blocks import BlockManager
from greenllm.engine.scheduler import Scheduler
from greenllm.runner.base import Runner
from tests.fake_engine import Alone, alone, make_runner

EOS = frozenset({0})


@dataclass(frozen=True)
class Arrival:
    """A request, the step it comes in, and how many steps later its client leaves."""

    request: Request
    step: int
    leaves_after: int | None


@dataclass(frozen=True)
class Plan:
    """A machine and its traffic."""

    arrivals: list[Arrival]
    block_size: int
    spare_blocks: int
    max_num_seqs: int
    spare_tokens: int
    prefix_cache: bool
    seconds_per_step: float
    guesses: tuple[int, ...] = ()

    @property
    def num_blocks(self) -> int:
        """Just enough for the longest sequence, and a few more."""
        longest = max(
            len(prompt) + arrival.request.sampling.max_tokens
            for arrival in self.arrivals
            for prompt in arrival.request.prompts
        )
        return -(-longest // self.block_size) + self.spare_blocks


# Few different tokens, so that prompts begin alike and blocks are shared.
prompts = st.one_of(
    st.lists(st.integers(1, 2), min_size=1, max_size=12),
    st.integers(1, 14).map(lambda length: [1] * length),
)


@st.composite
def arrivals(draw: st.DrawFn) -> Arrival:
    max_tokens = draw(st.integers(0, 10))
    params = SamplingParams(
        seed=draw(st.integers(0, 3)),
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens)),
        ignore_eos=draw(st.booleans()),
        stop_token_ids=draw(st.sampled_from([(), (), (5,), (3, 6)])),
        n=draw(st.sampled_from([1, 1, 2, 3])),
        prompt_logprobs=draw(st.sampled_from([None, None, 0])),
    )
    request = Request(
        request_id="",
        prompts=tuple(map(tuple, draw(st.lists(prompts, min_size=1, max_size=2)))),
        work=params,
        model="fake",
        key=draw(st.sampled_from([None, None, "one", "two"])),
        adapter=draw(st.sampled_from([None, None, AdapterRef("a", "digest")])),
    )
    leaves_after = draw(st.one_of(st.none(), st.integers(0, 12)))
    return Arrival(request, draw(st.integers(0, 12)), leaves_after)


def number(traffic: list[Arrival]) -> list[Arrival]:
    """Give every request its own id."""
    return [
        replace(arrival, request=replace(arrival.request, request_id=str(index)))
        for index, arrival in enumerate(traffic)
    ]


plans = st.builds(
    Plan,
    arrivals=st.lists(arrivals(), min_size=1, max_size=6).map(number),
    block_size=st.integers(1, 4),
    spare_blocks=st.integers(0, 8),
    max_num_seqs=st.integers(1, 5),
    spare_tokens=st.integers(0, 6),
    prefix_cache=st.booleans(),
    seconds_per_step=st.sampled_from([0.0, 0.2, 2.0]),
    guesses=st.lists(st.integers(0, 4), max_size=4).map(tuple),
)


class Oracle:
    """Guesses what the model will say, some of it wrong, and writes into the room it is given."""

    def __init__(self, guesses: tuple[int, ...], runner: Any) -> None:
        self._guesses = guesses
        self._runner = runner

    def num_drafts(self, seq: Sequence) -> int:
        """How many guesses the next step of a sequence may have."""
        return self._guesses[seq.num_generated % len(self._guesses)] if self._guesses else 0

    def draft(self, batch: Batch) -> Batch:
        """Fill every room: what the model says alone, every third token wrong."""
        return replace(batch, chunks=tuple(self._with_guesses(chunk) for chunk in batch.chunks))

    def _with_guesses(self, chunk: Chunk) -> Chunk:
        if not chunk.room:
            return chunk
        self._runner.scribble(chunk)
        seq = chunk.seq
        told, _, _ = alone(seq.request)[seq.index]
        coming = told[seq.num_generated :][: chunk.room]
        places = range(seq.num_generated, seq.num_generated + len(coming))
        wrong = [token + (place % 3 == 2) for place, token in zip(places, coming, strict=True)]
        return chunk.with_draft(tuple(wrong))


@dataclass
class Run:
    """A plan being carried out, checked step by step."""

    plan: Plan
    runner: Runner
    oracle: Oracle
    scheduler: Scheduler = field(init=False)
    sequences: dict[str, list[Sequence]] = field(default_factory=dict)
    sent: dict[tuple[str, int], list[Token]] = field(default_factory=lambda: defaultdict(list))
    computed: dict[Sequence, int] = field(default_factory=dict)
    now_s: float = 0.0
    copies: int = 0

    def __post_init__(self) -> None:
        blocks = BlockManager(
            self.plan.num_blocks, self.plan.block_size, prefix_cache=self.plan.prefix_cache
        )
        self.scheduler = Scheduler(
            blocks,
            max_num_seqs=self.plan.max_num_seqs,
            max_batch_tokens=self.plan.max_num_seqs + self.plan.spare_tokens,
            clock=lambda: self.now_s,
            num_drafts=self.oracle.num_drafts,
        )

    def carry_out(self) -> None:
        """Run to the end; each step brings the oldest running sequence forward, so it comes."""
        events = self._events()
        step = num_turns = 0
        while events or self.scheduler.has_work:
            for act in events.pop(step, ()):
                act()
            most_turns = sum(
                seq.max_len + 1 for sequences in self.sequences.values() for seq in sequences
            )
            if self.scheduler.has_work:
                self._turn()
                num_turns += 1
                assert num_turns <= most_turns
            step += 1
            self.now_s += self.plan.seconds_per_step

    def _events(self) -> dict[int, list[Callable[[], None]]]:
        events: dict[int, list[Callable[[], None]]] = defaultdict(list)
        for arrival in self.plan.arrivals:
            events[arrival.step].append(partial(self._add, arrival.request))
            if arrival.leaves_after is not None:
                leaving = arrival.step + arrival.leaves_after
                events[leaving].append(partial(self._abort, arrival.request))
        return events

    def _add(self, request: Request) -> None:
        sequences = sequences_of(request, eos_token_ids=EOS, max_len=64)
        self.sequences[request.request_id] = sequences
        for seq in sequences:
            self.scheduler.add(seq)

    def _abort(self, request: Request) -> None:
        self._send(self.scheduler.abort(request.request_id))

    def _send(self, tokens: list[Token]) -> None:
        for token in tokens:
            self.sent[token.request_id, token.index].append(token)

    def _turn(self) -> None:
        before = self.scheduler.num_preemptions
        batch = self.scheduler.schedule()
        # Whoever yields may find a place again in the same step, and then begins anew.
        self._check(batch, has_preempted=self.scheduler.num_preemptions > before)
        self.runner.copy_blocks(batch.copies)
        batch = self.oracle.draft(batch)
        self._send(self.scheduler.commit(batch, self.runner.run(batch)))
        for chunk in batch.chunks:
            if chunk.draft:
                self.computed[chunk.seq] = chunk.seq.num_computed

    def _check(self, batch: Batch, *, has_preempted: bool) -> None:
        size = self.plan.block_size
        num_tokens = batch.num_tokens + sum(chunk.room for chunk in batch.chunks)
        assert 0 < num_tokens <= self.scheduler.max_batch_tokens
        assert len(self.scheduler.running) <= self.scheduler.max_num_seqs
        assert len({chunk.seq for chunk in batch.chunks}) == len(batch.chunks)
        for seq in self.scheduler.waiting:
            self.computed.pop(seq, None)
            assert not seq.block_table
        for chunk in batch.chunks:
            seq = chunk.seq
            assert chunk.num_tokens > 0
            assert chunk.end <= min(len(seq.token_ids), len(seq.block_table) * size)
            assert chunk.samples == (chunk.end == len(seq.token_ids))
            assert chunk.end + chunk.room <= min(seq.max_len - 1, len(seq.block_table) * size) or (
                not chunk.room
            )
            if seq in self.computed and not has_preempted:
                assert chunk.start == self.computed[seq]
            else:
                begins = chunk.start == 0 or chunk.start == self.computed.get(seq)
                assert begins or self.plan.prefix_cache
            self.computed[seq] = chunk.end
        fresh = {chunk.seq.block_table[chunk.start // size] for chunk in batch.chunks}
        assert {target for _, target in batch.copies} <= fresh
        self.copies += len(batch.copies)
        held = {block for seq in self.scheduler.running for block in seq.block_table}
        assert self.scheduler.blocks.num_free == self.plan.num_blocks - len(held)


def check_answer(seq: Sequence, sent: list[Token], wanted: Alone, left: bool) -> None:
    tokens, reason, scores = wanted
    generated = seq.token_ids[seq.prompt_len :]
    assert [token.token_id for token in sent if token.token_id is not None] == generated
    assert [token.finish_reason for token in sent[:-1]] == [None] * (len(sent) - 1)
    assert sent[-1].finish_reason == seq.finish_reason
    if seq.finish_reason == "abort":
        assert left
        assert generated == tokens[: len(generated)]
    else:
        assert (generated, seq.finish_reason) == (tokens, reason)
    if generated or seq.finish_reason != "abort":
        assert sent[0].prompt_logprobs == scores
    assert all(token.prompt_logprobs == () for token in sent[1:])


@given(plans)
def test_company_changes_nobodys_answer(plan: Plan) -> None:
    runner = make_runner(plan.num_blocks, plan.block_size)
    run = Run(plan, runner, Oracle(plan.guesses, runner))
    run.carry_out()
    for arrival in plan.arrivals:
        request = arrival.request
        expected = alone(request)
        for seq in run.sequences[request.request_id]:
            sent = run.sent[request.request_id, seq.index]
            left = arrival.leaves_after is not None
            check_answer(seq, sent, expected[seq.index], left)
            if seq.num_cached is not None:
                assert seq.num_cached < max(1, seq.prompt_len)
    assert run.scheduler.blocks.num_free == plan.num_blocks
    event("preempted" if run.scheduler.num_preemptions else "never preempted")
    cached = sum(seq.num_cached or 0 for group in run.sequences.values() for seq in group)
    event("used the prefix cache" if cached else "no prefix was found")
    accepted = sum(seq.num_accepted for group in run.sequences.values() for seq in group)
    event("guessed right" if accepted else "guessed nothing right")
    event("copied a block" if run.copies else "copied no block")
