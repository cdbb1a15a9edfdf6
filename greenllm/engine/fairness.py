"""Whose turn it is: clients share the places in the batch, however much one of them asks for.

A client is an API key, or a single request where none was given. Contract: each client is charged
for the tokens that it has had computed, and whoever has had least, in steps of `QUANTUM_TOKENS`,
comes first; then whoever has the fewest sequences in the batch; then who came first. So requests
of one client are answered in their order, and so are those of several that each ask for little. A
client that comes, or comes back, begins with the least that anybody has had: nobody saves up.

This is deficit round-robin in the form of virtual token counters (Sheng et al., "Fairness in
Serving Large Language Models", 2024).

A client that has less than its share of the places or blocks takes some from the one that has
most, whose youngest sequences are preempted for it. Both then are nearer to equal shares, so that
it is not taken back.

Not covered: weights of clients.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from greenllm.core import Request, Sequence
from greenllm.engine.blocks import BlockManager

QUANTUM_TOKENS = 2048
Rank = tuple[int, int]


def client_of(request: Request) -> str:
    """Who is to have a fair share."""
    return request.key or request.request_id


def num_running(running: Iterable[Sequence]) -> Counter[str]:
    """Sequences in the batch by client."""
    return Counter(client_of(seq.request) for seq in running)


def num_held(running: Iterable[Sequence]) -> Counter[str]:
    """Blocks by client; those that several sequences use count for each."""
    held: Counter[str] = Counter()
    for seq in running:
        held[client_of(seq.request)] += len(seq.block_table)
    return held


@dataclass(frozen=True, slots=True)
class Room:
    """What there is to share: the blocks, and places in the batch."""

    blocks: BlockManager
    num_places: int


class Shares:
    """Tokens that each client in the house has had; who leaves is forgotten."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._num_open: dict[str, int] = {}

    @property
    def num_clients(self) -> int:
        """Clients with sequences that wait or run."""
        return len(self._num_open)

    def enter(self, client: str) -> None:
        """A sequence of a client has come."""
        if client not in self._num_open:
            self._tokens[client] = min(self._tokens.values(), default=0)
        self._num_open[client] = self._num_open.get(client, 0) + 1

    def leave(self, client: str) -> None:
        """A sequence of a client has ended."""
        self._num_open[client] -= 1
        if not self._num_open[client]:
            del self._num_open[client], self._tokens[client]

    def charge(self, client: str, num_tokens: int) -> None:
        """Tokens of a client are computed."""
        self._tokens[client] += num_tokens

    def rank(self, client: str, num_running: int) -> Rank:
        """The lower, the sooner it is a client's turn."""
        return self._tokens.get(client, 0) // QUANTUM_TOKENS, num_running

    def has_had_less(self, client: str, other: str) -> bool:
        """Whether a client has had a quantum less than another."""
        return self.rank(client, 0) < self.rank(other, 0)

    def who_yields(
        self, seq: Sequence, running: SequenceOf[Sequence], room: Room
    ) -> list[Sequence]:
        """Running sequences to preempt for one that waits; none where it has its share.

        With them gone it is sure to be admitted.
        """
        client, left, victims = client_of(seq.request), list(running), list[Sequence]()
        needed, free = room.blocks.blocks_for(len(seq.token_ids)), room.blocks.num_free
        while (is_full := len(left) >= room.num_places) or needed + len(left) > free:
            count = num_running(left)
            held = count if is_full else num_held(left)
            most = max(held, key=lambda one: held[one], default=client)
            its = [one for one in left if client_of(one.request) == most]
            wanted = 1 if is_full else needed
            given = 1 if is_full else len(its[-1].block_table) if its else 0
            is_over = held[most] - given >= held[client] + wanted
            is_later = self.rank(most, count[most] - 1) > self.rank(client, count[client])
            if most == client or not (is_over and is_later):
                return []
            left.remove(its[-1])
            victims.append(its[-1])
            free += room.blocks.num_own(its[-1].block_table)
        return victims

    def who_runs_out(self, seq: Sequence, running: SequenceOf[Sequence], room: Room) -> Sequence:
        """Who is preempted so that a running sequence gets a block.

        It is the sequence itself or one that comes after it, for those before it are in the batch:
        the youngest of a client with more than its share of blocks and another sequence, or of all.
        """
        after = running[running.index(seq) :]
        if self.num_clients > 1:
            held, count = num_held(running), num_running(running)
            most = max(held, key=lambda one: held[one])
            its = [one for one in after if client_of(one.request) == most]
            is_over = held[most] > room.blocks.num_blocks // self.num_clients
            if its and count[most] > 1 and is_over:
                return its[-1]
        return after[-1]


class WaitingQueue:
    """Sequences that wait, in the order in which it is their clients' turn."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._of: dict[str, deque[tuple[int, Sequence]]] = {}
        self._size = self._first = self._last = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        return self.in_turn({})

    def next(self, num_running: Mapping[str, int]) -> Sequence:
        """The one whose turn it is."""
        rank = self._shares.rank
        turns = ((rank(c, num_running.get(c, 0)), q[0][0], c) for c, q in self._of.items())
        return self._of[min(turns)[2]][0][1]

    def append(self, seq: Sequence) -> None:
        """Queue a sequence behind its client's others."""
        self._last += 1
        self._queue_of(seq).append((self._last, seq))

    def appendleft(self, seq: Sequence) -> None:
        """Put a sequence back before its client's others."""
        self._first -= 1
        self._queue_of(seq).appendleft((self._first, seq))

    def _queue_of(self, seq: Sequence) -> deque[tuple[int, Sequence]]:
        self._size += 1
        return self._of.setdefault(client_of(seq.request), deque())

    def discard(self, ended: Iterable[Sequence]) -> None:
        """Take sequences out, wherever they are."""
        by_client: dict[str, set[int]] = {}
        for seq in ended:
            by_client.setdefault(client_of(seq.request), set()).add(id(seq))
        for client in by_client.keys() & self._of.keys():
            gone, before = by_client[client], self._of[client]
            left = deque(entry for entry in before if id(entry[1]) not in gone)
            self._size -= len(before) - len(left)
            if left:
                self._of[client] = left
            else:
                del self._of[client]

    def in_turn(self, num_running: Mapping[str, int]) -> Iterator[Sequence]:
        """The sequences, each client's next one when it is its turn.

        `num_running`, sequences in the batch by client, may change on the way; so may the queue.
        """

        def entry(client: str, place: int) -> tuple[Rank, int, str, int]:
            rank = self._shares.rank(client, num_running.get(client, 0))
            return rank, queues[client][place][0], client, place

        queues = {client: tuple(queue) for client, queue in self._of.items()}
        turns = [entry(client, 0) for client in queues]
        heapq.heapify(turns)
        while turns:
            _, _, client, place = heapq.heappop(turns)
            yield queues[client][place][1]
            if place + 1 < len(queues[client]):
                heapq.heappush(turns, entry(client, place + 1))
