"""Paged KV block accounting with a prefix cache. Integers only: no torch, no memory.

A block holds the keys and values of `block_size` consecutive tokens. Full blocks are known by a
digest of everything up to and including their tokens, so that sequences with a common prefix share
them. A block nobody refers to keeps its content until it is needed again, oldest first (LRU).

Contract: a block is either referenced or in the free queue, never both; a block that is still
known by its digest is handed out as fresh only after the digest is forgotten.

Not covered: copy-on-write (a partly filled block is never shared), swapping to disk.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as SequenceOf

ROOT = b""


def chain(parent: bytes, token_ids: SequenceOf[int]) -> bytes:
    """Digest of a full block: its own tokens and, through `parent`, all tokens before them."""
    return hashlib.blake2b(array("q", token_ids).tobytes(), key=parent, digest_size=16).digest()


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
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._evictions = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, remembered prefixes included."""
        return len(self._free)

    @property
    def num_evictions(self) -> int:
        """Remembered blocks that had to be forgotten to make room."""
        return self._evictions

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

    def digest_of(self, block: int) -> bytes:
        """Digest a remembered block is known by."""
        return self._digest_of[block]

    def num_free_after(self, shared: SequenceOf[int]) -> int:
        """Free blocks left once `shared` has been taken."""
        return len(self._free) - sum(1 for block in shared if self._references[block] == 0)

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
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
            self._evictions += 1
        self._references[block] = 1
        return block

    def free(self, blocks: SequenceOf[int]) -> None:
        """Drop one reference each; the tail goes first, so that prefixes outlive their ends."""
        for block in reversed(blocks):
            if self._references[block] == 0:
                raise ValueError(f"block {block} was freed twice")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._digest_of:
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
            digest = chain(digest, token_ids[start : start + self.block_size])
            block = blocks[index]
            if self.prefix_cache and digest not in self._block_of and block not in self._digest_of:
                self._block_of[digest] = block
                self._digest_of[block] = digest
        return digest
