"""Blocks are referenced or free, prefixes are found again, and the oldest are forgotten first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from greenllm.engine.blocks import ROOT, BlockManager, OutOfBlocksError, chain


def store(blocks: BlockManager, token_ids: list[int], salt: bytes = ROOT) -> list[int]:
    """Put a sequence into the cache as the scheduler would; returns its table."""
    shared = blocks.match(token_ids, salt=salt)
    blocks.take(shared)
    table = shared + blocks.allocate(blocks.blocks_for(len(token_ids)) - len(shared))
    parent = blocks.digest_of(shared[-1]) if shared else salt
    full = len(token_ids) // blocks.block_size * blocks.block_size
    blocks.remember(token_ids[:full], table, first=len(shared), parent=parent)
    return table


@pytest.mark.parametrize(("tokens", "count"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_blocks_for(tokens: int, count: int) -> None:
    assert BlockManager(4, 4).blocks_for(tokens) == count


def test_allocation_is_all_or_nothing() -> None:
    blocks = BlockManager(3, 4)
    held = blocks.allocate(2)
    with pytest.raises(OutOfBlocksError, match="2 blocks asked for, 1 free"):
        blocks.allocate(2)
    assert blocks.num_free == 1
    assert sorted([*held, *blocks.allocate(1)]) == [0, 1, 2]


@pytest.mark.parametrize("remembered", [False, True])
def test_a_double_free_is_refused_and_changes_nothing(remembered: bool) -> None:
    blocks = BlockManager(4, 2)
    table = store(blocks, [1, 2]) if remembered else blocks.allocate(1)
    blocks.free(table)
    with pytest.raises(ValueError, match=f"block {table[0]} was freed twice"):
        blocks.free(table)
    assert blocks.num_free == 4
    assert sorted(blocks.allocate(4)) == [0, 1, 2, 3]
    blocks.free(table)
    assert blocks.num_free == 1


@pytest.mark.parametrize(
    ("length", "matched"), [(1, 0), (4, 0), (5, 1), (7, 1), (8, 1), (9, 2), (10, 2)]
)
def test_a_match_never_covers_the_last_token(length: int, matched: int) -> None:
    blocks = BlockManager(8, 4)
    table = store(blocks, list(range(8)))
    assert blocks.match(list(range(length))) == table[:matched]


@pytest.mark.parametrize(
    ("token_ids", "count"),
    [
        ([5, 6, 7, 8, 9], 4),
        ([5, 6, 7, 8], 3),
        ([5, 6, 0, 8], 2),
        ([5, 6], 1),
        ([5], 0),
        ([], 0),
        ([9, 6, 7, 8], 0),
    ],
)
def test_a_block_that_begins_alike_is_found_up_to_the_last_token(
    token_ids: list[int], count: int
) -> None:
    blocks = BlockManager(8, 4)
    table = store(blocks, [1, 2, 3, 4, 5, 6, 7, 8])
    found = blocks.match_part(token_ids, blocks.digest_of(table[0]))
    assert found == ((table[1], count) if count else None)
    assert blocks.match_part(token_ids, chain(ROOT, [1, 2, 3, 5])) is None


def test_the_block_with_most_in_common_is_found_until_it_is_forgotten() -> None:
    blocks = BlockManager(3, 4)
    for ids in ([1, 2, 0, 0], [1, 2, 3, 0], [1, 0, 0, 0]):
        blocks.free(store(blocks, ids))
    assert blocks.match_part([1, 2, 3, 4, 5], ROOT) == (1, 3)
    assert blocks.allocate(2) == [0, 1]
    assert blocks.match_part([1, 2, 3, 4, 5], ROOT) == (2, 1)
    assert blocks.allocate(1) == [2]
    assert blocks.match_part([1, 2, 3, 4, 5], ROOT) is None


def test_a_match_takes_nothing() -> None:
    blocks = BlockManager(8, 4)
    table = store(blocks, list(range(8)))
    blocks.free(table)
    assert blocks.match(list(range(9))) == table
    assert blocks.num_free == 8


def test_a_match_ends_at_the_first_difference() -> None:
    blocks = BlockManager(8, 2)
    table = store(blocks, [1, 2, 3, 4, 5, 6])
    assert blocks.match([1, 2, 9, 4, 5, 6, 7]) == table[:1]
    assert blocks.match([9, 2, 3, 4, 5, 6, 7]) == []


def test_the_same_tokens_after_another_beginning_are_another_block() -> None:
    blocks = BlockManager(8, 2)
    first = store(blocks, [1, 1, 5, 5, 0])
    second = store(blocks, [2, 2, 5, 5, 0])
    assert not set(first) & set(second)
    assert blocks.match([2, 2, 5, 5, 0]) == second[:2]


def test_without_a_prefix_cache_nothing_is_found() -> None:
    blocks = BlockManager(4, 2, prefix_cache=False)
    blocks.free(store(blocks, [1, 2, 3, 4]))
    assert blocks.match([1, 2, 3, 4, 5]) == []
    assert sorted(blocks.allocate(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("mine", "theirs"), [(b"a", b"b"), (b"a", ROOT), (ROOT, b"\0")])
def test_salts_keep_blocks_apart(mine: bytes, theirs: bytes) -> None:
    blocks = BlockManager(8, 2)
    table = store(blocks, [1, 2, 3, 4], salt=mine)
    assert blocks.match([1, 2, 3, 4, 5], salt=theirs) == []
    assert blocks.match([1, 2, 3, 4, 5], salt=mine) == table


def test_shared_blocks_are_free_only_after_the_last_owner() -> None:
    blocks = BlockManager(4, 2)
    first = store(blocks, [1, 2, 3])
    second = store(blocks, [1, 2, 4])
    assert first[0] == second[0]
    assert blocks.num_free == 1
    blocks.free(first)
    assert blocks.num_free == 2
    assert blocks.match([1, 2, 9]) == second[:1]
    blocks.free(second)
    assert blocks.num_free == 4


def test_free_after_counts_only_blocks_that_are_free_now() -> None:
    blocks = BlockManager(6, 2)
    held, loose = store(blocks, [1, 2, 3]), store(blocks, [5, 6, 7])
    blocks.free(loose)
    assert blocks.num_free == 4
    assert blocks.num_free_after(held[:1]) == 4
    assert blocks.num_free_after(loose[:1]) == 3
    assert blocks.num_free_after([held[0], loose[0]]) == 3


def test_two_computations_of_one_prefix_are_remembered_once() -> None:
    blocks = BlockManager(4, 2)
    first, second = blocks.allocate(1), blocks.allocate(1)
    one = blocks.remember([1, 2], first, first=0, parent=ROOT)
    other = blocks.remember([1, 2], second, first=0, parent=ROOT)
    assert one == other == chain(ROOT, [1, 2]) == blocks.digest_of(first[0])
    assert blocks.match([1, 2, 3]) == first


def test_eviction_begins_with_unremembered_blocks_then_the_oldest_tail_first() -> None:
    blocks = BlockManager(6, 2)
    old, new = store(blocks, [1, 1, 2, 2]), store(blocks, [3, 3, 4, 4])
    plain = blocks.allocate(2)
    blocks.free(old)
    blocks.free(new)
    blocks.free(plain)
    assert {blocks.allocate(1)[0], blocks.allocate(1)[0]} == set(plain)
    assert [blocks.allocate(1)[0] for _ in range(4)] == [old[1], old[0], new[1], new[0]]


def test_using_a_prefix_again_makes_it_the_youngest() -> None:
    blocks = BlockManager(2, 2)
    old, new = store(blocks, [1, 1]), store(blocks, [2, 2])
    blocks.free(old)
    blocks.free(new)
    blocks.take(old)
    blocks.free(old)
    assert blocks.allocate(1) == new


def test_a_digest_is_forgotten_when_its_block_is_used_anew() -> None:
    blocks = BlockManager(1, 2)
    table = store(blocks, [1, 2])
    blocks.free(table)
    assert blocks.match([1, 2, 3]) == table
    assert blocks.allocate(1) == table
    assert blocks.match([1, 2, 3]) == []
    with pytest.raises(KeyError):
        blocks.digest_of(table[0])


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    st.binary(max_size=16),
    st.binary(max_size=16),
)
def test_digests_are_equal_only_for_equal_contents(
    one: list[int], other: list[int], parent: bytes, stranger: bytes
) -> None:
    same = (one, parent) == (other, stranger)
    assert (chain(parent, one) == chain(stranger, other)) == same
    assert chain(parent, one) == chain(parent, tuple(one))


@dataclass(eq=False)
class Held:
    """A sequence in the cache: its blocks, and how many of them it has made findable."""

    salt: bytes
    token_ids: list[int]
    table: list[int]
    num_remembered: int
    digest: bytes


class BlockMachine(RuleBasedStateMachine):
    """Random sequences against a model that keeps whole prefixes instead of digests."""

    held = Bundle("held")

    @initialize(num_blocks=st.integers(1, 8), block_size=st.integers(1, 3))
    def start(self, num_blocks: int, block_size: int) -> None:
        self.blocks = BlockManager(num_blocks, block_size)
        self.open: list[Held] = []
        self.contents: dict[int, tuple[bytes, tuple[int, ...]]] = {}

    def references(self) -> Counter[int]:
        return Counter(block for held in self.open for block in held.table)

    def expected_match(self, salt: bytes, token_ids: list[int]) -> list[tuple[int, ...]]:
        size, known = self.blocks.block_size, set(self.contents.values())
        found: list[tuple[int, ...]] = []
        for end in range(size, len(token_ids), size):
            if (salt, tuple(token_ids[:end])) not in known:
                break
            found.append(tuple(token_ids[:end]))
        return found

    @rule(
        target=held,
        salt=st.sampled_from([ROOT, b"adapter"]),
        token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=9),
    )
    def admit(self, salt: bytes, token_ids: list[int]) -> object:
        blocks, before = self.blocks, self.references()
        shared = blocks.match(token_ids, salt=salt)
        expected = self.expected_match(salt, token_ids)
        assert [self.contents[block] for block in shared] == [(salt, part) for part in expected]
        assert len(shared) * blocks.block_size < len(token_ids)
        count = blocks.blocks_for(len(token_ids)) - len(shared)
        left = blocks.num_free_after(shared)
        assert left == blocks.num_blocks - len({*before, *shared})
        blocks.take(shared)
        if count > left:
            with pytest.raises(OutOfBlocksError):
                blocks.allocate(count)
            blocks.free(shared)
            return multiple()
        fresh = blocks.allocate(count)
        assert len(set(fresh)) == count
        assert not set(fresh) & {*before, *shared}
        for block in fresh:
            self.contents.pop(block, None)
        digest = blocks.digest_of(shared[-1]) if shared else salt
        held = Held(salt, token_ids, shared + fresh, len(shared), digest)
        self.open.append(held)
        return held

    @rule(held=held, data=st.data())
    def remember(self, held: Held, data: st.DataObject) -> None:
        size = self.blocks.block_size
        full = data.draw(st.integers(held.num_remembered, len(held.token_ids) // size))
        held.digest = self.blocks.remember(
            held.token_ids[: full * size],
            held.table,
            first=held.num_remembered,
            parent=held.digest,
        )
        for index in range(held.num_remembered, full):
            content = (held.salt, tuple(held.token_ids[: (index + 1) * size]))
            if content not in self.contents.values():
                self.contents[held.table[index]] = content
        held.num_remembered = full

    @rule(held=consumes(held))
    def free(self, held: Held) -> None:
        self.blocks.free(held.table)
        self.open.remove(held)

    @invariant()
    def every_block_is_either_referenced_or_free(self) -> None:
        references = self.references()
        assert self.blocks.num_free == self.blocks.num_blocks - len(references)
        loose = [block for block in range(self.blocks.num_blocks) if not references[block]]
        assert self.blocks.num_free_after(loose) == 0
        assert self.blocks.num_free_after(list(references)) == self.blocks.num_free

    @invariant()
    def remembered_blocks_have_distinct_digests(self) -> None:
        digests = [self.blocks.digest_of(block) for block in self.contents]
        assert len(set(digests)) == len(self.contents)

    @invariant()
    def every_remembered_block_is_found_by_its_own_tokens(self) -> None:
        size = self.blocks.block_size
        for salt, ids in self.contents.values():
            before = {self.contents[block]: block for block in self.contents}
            parent = before.get((salt, ids[:-size]))
            if parent is not None or len(ids) == size:
                digest = salt if parent is None else self.blocks.digest_of(parent)
                found = self.blocks.match_part([*ids[-size:], 9], digest)
                assert found is not None
                assert (self.contents[found[0]], found[1]) == ((salt, ids), size)

    def teardown(self) -> None:
        if hasattr(self, "blocks"):
            for held in self.open:
                self.blocks.free(held.table)
            assert self.blocks.num_free == self.blocks.num_blocks
            for block in range(self.blocks.num_blocks):
                with pytest.raises(ValueError, match="freed twice"):
                    self.blocks.free([block])


def test_blocks_under_random_use() -> None:
    run_state_machine_as_test(
        BlockMachine,
        settings=settings(max_examples=40, stateful_step_count=30),
    )
