"""Paged KV block accounting with a prefix cache. Integers only: no torch, no memory.

A block holds the keys and values of `block_size` consecutive tokens. Full blocks are known by a
digest of everything up to and including their tokens, so that sequences with a common prefix share
them; where two part ways within a block, `match_part` finds the one to copy from. A block nobody
refers to keeps its content until it is needed again, oldest first (LRU).

Contract: a block is either referenced or in the free queue, never both; a block that is still
known by its digest is handed out as fresh only after the digest is forgotten.

Not covered: blocks that are not full are not found; swapping to disk.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import islice

ROOT = b""
_MOST_COMPARED = 16


def chain(parent: bytes, token_ids: SequenceOf[int]) -> bytes:
    """Digest of a full block: its own tokens and, through `parent`, all tokens before them."""
    return hashlib.blake2b(array("q", token_ids).tobytes(), key=parent, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _Known:
    """What a remembered block holds, and after what."""

    digest: bytes
    parent: bytes
    token_ids: tuple[int, ...]


class OutOfBlocksError(Exception):
    """No block is free: the scheduler must preempt before it allocates."""


class BlockManager:
    """Hands out blocks, counts references and remembers prefixes."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._known: dict[int, _Known] = {}
        self._block_of: dict[bytes, int] = {}
        self._followers: dict[bytes, dict[int, None]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, remembered prefixes included."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def match(self, token_ids: SequenceOf[int], *, salt: bytes = ROOT) -> list[int]:
        """Return the remembered blocks of the longest known prefix, without taking them.

        The last token is never matched: its logits are still needed.
        """
        if not self.prefix_cache:
            return []
        found: list[int] = []
        digest = salt
        for start in range(0, len(token_ids) - self.block_size, self.block_size):
            digest = chain(digest, token_ids[start : start + self.block_size])
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def match_part(self, token_ids: SequenceOf[int], parent: bytes) -> tuple[int, int] | None:
        """The remembered block after `parent` that begins most like `token_ids`; how many tokens.

        As in `match`, the last token does not count. Only the newest few blocks are compared.
        """
        wanted = token_ids[: self.block_size][: len(token_ids) - 1]
        newest = islice(reversed(self._followers.get(parent, {})), _MOST_COMPARED)
        parts = [(block, _num_common(self._known[block].token_ids, wanted)) for block in newest]
        best = max(parts, key=lambda part: part[1], default=(0, 0))
        return best if best[1] else None

    def digest_of(self, block: int) -> bytes:
        """Digest a remembered block is known by."""
        return self._known[block].digest

    def num_free_after(self, shared: SequenceOf[int]) -> int:
        """Free blocks left once `shared` has been taken."""
        return len(self._free) - sum(1 for block in shared if self._references[block] == 0)

    def num_own(self, blocks: SequenceOf[int]) -> int:
        """How many of a sequence's blocks nobody else refers to."""
        return sum(1 for block in blocks if self._references[block] == 1)

    def take(self, blocks: SequenceOf[int]) -> None:
        """Refer to remembered blocks (from `match`)."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Return `count` fresh blocks; all or nothing.

        Raises:
            OutOfBlocksError: fewer than `count` are free.
        """
        if count > len(self._free):
            raise OutOfBlocksError(f"{count} blocks asked for, {len(self._free)} free")
        return [self._allocate_one() for _ in range(count)]

    def _allocate_one(self) -> int:
        block, _ = self._free.popitem(last=False)
        if block in self._known:
            self._forget(block)
        self._references[block] = 1
        return block

    def _forget(self, block: int) -> None:
        known = self._known.pop(block)
        del self._block_of[known.digest]
        followers = self._followers[known.parent]
        del followers[block]
        if not followers:
            del self._followers[known.parent]

    def free(self, blocks: SequenceOf[int]) -> None:
        """Drop one reference each; the tail goes first, so that prefixes outlive their ends."""
        for block in reversed(blocks):
            if self._references[block] == 0:
                raise ValueError(f"block {block} was freed twice")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._known:
                    self._free.move_to_end(block, last=False)

    def remember(
        self,
        token_ids: SequenceOf[int],
        blocks: SequenceOf[int],
        *,
        first: int,
        parent: bytes,
    ) -> bytes:
        """Make full blocks from index `first` on findable; return the digest of the last one.

        `token_ids` must be computed tokens, from the start of the sequence, whole blocks.
        """
        digest = parent
        for index in range(first, len(token_ids) // self.block_size):
            start = index * self.block_size
            ids = tuple(token_ids[start : start + self.block_size])
            parent, digest = digest, chain(digest, ids)
            block = blocks[index]
            if self.prefix_cache and digest not in self._block_of and block not in self._known:
                self._block_of[digest] = block
                self._known[block] = _Known(digest, parent, ids)
                self._followers.setdefault(parent, {})[block] = None
        return digest


def _num_common(ids: SequenceOf[int], others: SequenceOf[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ids), len(others)))
