"""Clients share the batch: whoever asks for much does not keep others waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from greenllm.core import Request, Sample, Sequence, sequences_of
from greenllm.engine.blocks import BlockManager
from greenllm.engine.fairness import QUANTUM_TOKENS, Shares, WaitingQueue, client_of
from greenllm.engine.scheduler import Scheduler
from tests.fake_engine import make_request

PLACES = 4


def sequences(request_id: str, *, key: str | None = None, n: int = 1) -> list[Sequence]:
    request = make_request(request_id, [1] * 4, max_tokens=40, ignore_eos=True, n=n)
    return sequences_of(replace(request, key=key), eos_token_ids=frozenset(), max_len=64)


def make_queue(*arriving: Sequence) -> tuple[Shares, WaitingQueue]:
    shares = Shares()
    queue = WaitingQueue(shares)
    for seq in arriving:
        shares.enter(client_of(seq.request))
        queue.append(seq)
    return shares, queue


def names(queue: WaitingQueue) -> list[str]:
    return [seq.request.request_id for seq in queue]


class House:
    """A scheduler, and a model that always says the same."""

    def __init__(self, *, num_blocks: int = 200) -> None:
        blocks = BlockManager(num_blocks, 4, prefix_cache=False)
        self.scheduler = Scheduler(
            blocks, max_num_seqs=PLACES, max_batch_tokens=16, clock=lambda: 0.0
        )

    def add(self, request_id: str, *, key: str | None = None, n: int = 1) -> Request:
        coming = sequences(request_id, key=key, n=n)
        for seq in coming:
            self.scheduler.add(seq)
        return coming[0].request

    def turn(self) -> set[str]:
        """Run a step; the requests in it."""
        batch = self.scheduler.schedule()
        self.scheduler.commit(batch, [Sample((1,) if c.samples else ()) for c in batch.chunks])
        return {chunk.seq.request.request_id for chunk in batch.chunks}

    @property
    def running(self) -> list[str]:
        return sorted(seq.request.request_id for seq in self.scheduler.running)


def test_requests_of_one_key_are_one_client_and_without_keys_each_is_its_own() -> None:
    with_key = [
        client_of(seq[0].request) for seq in (sequences("a", key="k"), sequences("b", key="k"))
    ]
    assert with_key == ["k", "k"]
    assert [client_of(sequences(name)[0].request) for name in "ab"] == ["a", "b"]


def test_one_client_is_first_come_first_served() -> None:
    _, queue = make_queue(*(sequences(name, key="k")[0] for name in "abc"))
    assert names(queue) == ["a", "b", "c"]
    first = next(iter(queue))
    queue.discard([first])
    queue.appendleft(first)
    assert names(queue) == ["a", "b", "c"], "whoever was preempted comes first again"


def test_whoever_has_had_a_quantum_less_comes_first() -> None:
    shares, queue = make_queue(*(sequences(name)[0] for name in "ab"))
    shares.charge("a", QUANTUM_TOKENS - 1)
    assert names(queue) == ["a", "b"], "not yet a quantum"
    shares.charge("a", 1)
    assert names(queue) == ["b", "a"]
    assert queue.next({}).request.request_id == "b"


def test_a_client_that_comes_later_begins_where_the_others_are() -> None:
    """Else whoever stays away would save up, and then keep all others waiting."""
    shares, queue = make_queue(sequences("early")[0])
    shares.charge("early", 10 * QUANTUM_TOKENS)
    late = sequences("late")[0]
    shares.enter("late")
    queue.append(late)
    assert names(queue) == ["early", "late"]


def test_a_client_that_has_gone_is_forgotten() -> None:
    shares, _ = make_queue(sequences("a")[0])
    shares.leave("a")
    assert shares.num_clients == 0
    shares.enter("a")
    assert shares.rank("a", 0) == (0, 0)


def test_sequences_in_the_batch_count_against_a_client() -> None:
    _, queue = make_queue(sequences("a")[0], sequences("b")[0])
    assert [seq.request.request_id for seq in queue.in_turn({"a": 1})] == ["b", "a"]


def test_a_request_of_many_sequences_leaves_a_place_to_one_that_comes_later() -> None:
    house = House()
    house.add("hog", n=50)
    for _ in range(3):
        house.turn()
    assert house.running == ["hog"] * PLACES
    house.add("small")
    assert "small" in house.turn(), "in the very next step"
    assert house.running == ["hog"] * (PLACES - 1) + ["small"]
    assert house.scheduler.num_preemptions == 1


def test_places_are_shared_equally_and_nobody_takes_back_what_was_taken() -> None:
    house = House()
    house.add("hog", key="hog", n=50)
    for _ in range(3):
        house.turn()
    house.add("other", key="other", n=50)
    for _ in range(30):
        house.turn()
    assert house.running == ["hog", "hog", "other", "other"]
    assert house.scheduler.num_preemptions == 2


def test_a_key_gains_nothing_by_sending_many_requests() -> None:
    house = House()
    for number in range(50):
        house.add(f"hog-{number}", key="hog")
    house.turn()
    house.add("small", key="small")
    assert "small" in house.turn()


def test_a_long_prompt_lets_a_newcomer_in_after_a_quantum() -> None:
    blocks = BlockManager(4000, 4, prefix_cache=False)
    scheduler = Scheduler(blocks, max_num_seqs=PLACES, max_batch_tokens=512, clock=lambda: 0.0)
    long = make_request("long", [1] * (4 * QUANTUM_TOKENS), max_tokens=1)
    for seq in sequences_of(long, eos_token_ids=frozenset(), max_len=8 * QUANTUM_TOKENS):
        scheduler.add(seq)
    in_batch: list[list[str]] = []
    while scheduler.has_work:
        batch = scheduler.schedule()
        scheduler.commit(batch, [Sample((1,) if c.samples else ()) for c in batch.chunks])
        in_batch.append([chunk.seq.request.request_id for chunk in batch.chunks])
        if len(in_batch) == 1:
            scheduler.add(sequences("short")[0])
    first = next(step for step, names in enumerate(in_batch) if "short" in names)
    assert first == QUANTUM_TOKENS // 512


def test_blocks_are_shared_too() -> None:
    """There is a place, but the sequences of the hog have grown until no block is free for it."""
    house = House(num_blocks=24)
    house.add("hog", n=3)
    while house.scheduler.blocks.num_free > 3:
        house.turn()
    house.add("small")
    assert "small" in house.turn()
    assert house.running == ["hog", "hog", "small"]


def test_where_blocks_run_out_the_one_with_too_many_yields() -> None:
    house = House(num_blocks=24)
    small = house.add("small")
    house.turn()
    house.add("hog", n=3)
    num_preempted = 0
    while house.scheduler.running and num_preempted == 0:
        house.turn()
        num_preempted = house.scheduler.num_preemptions
    assert num_preempted
    assert small.request_id in house.running


@pytest.mark.parametrize("n", [1, 30])
def test_everybody_is_answered(n: int) -> None:
    house = House(num_blocks=24)
    for number in range(5):
        house.add(str(number), n=n)
    while house.scheduler.has_work:
        house.turn()
    assert not len(house.scheduler.waiting)
    assert house.scheduler.blocks.num_free == 24
