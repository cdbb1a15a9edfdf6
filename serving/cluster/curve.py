"""What a token costs by how many requests share a replica, learnt from its own account.

Contract: a few numbers per power of two of requests in flight. `full_at` is the smallest size from
which larger ones seen so far save less than `_WORTH` of a token's joules; what has not been seen is
assumed to save, and what has not been seen for long is forgotten. Knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Mapping

_WORTH = 0.05
_WEIGHT = 0.3
_FEWEST_TOKENS = 16
_REMEMBERED_NOTES = 300


class JoulesCurve:
    """Joules per token at 1, 2, 4, ... requests in flight."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._per_token_j: dict[int, float] = {}
        self._noted: dict[int, int] = {}
        self._num_notes = 0

    @property
    def per_token_j(self) -> Mapping[int, float]:
        """By size; a slow average."""
        return self._per_token_j

    def note(self, in_flight: tuple[int, int], tokens: int, joules: float) -> None:
        """Learn from a stretch of time, with so many in flight at its beginning and its end.

        A few tokens tell nothing, nor does a stretch in which the load has changed.
        """
        before, size = (1 << (count.bit_length() - 1) if count > 0 else 0 for count in in_flight)
        if tokens < _FEWEST_TOKENS or not before == size > 0 or joules <= 0:
            return
        self._num_notes += 1
        self._forget()
        self._noted[size] = self._num_notes
        now_j = joules / tokens
        before_j = self._per_token_j.get(size, now_j)
        self._per_token_j[size] = before_j + _WEIGHT * (now_j - before_j)

    def _forget(self) -> None:
        """What has not been seen for long is to be tried again: the load may be another."""
        for size, noted in list(self._noted.items()):
            if self._num_notes - noted > _REMEMBERED_NOTES:
                del self._noted[size], self._per_token_j[size]

    @property
    def full_at(self) -> int:
        """Requests that fill a replica."""
        sizes = sorted(self._per_token_j)
        largest = sizes[-1] if sizes else 0
        for size in sizes:
            least_j = min(self._per_token_j[other] for other in sizes if other >= size)
            beyond_is_known = largest >= 2 * size
            if beyond_is_known and self._per_token_j[size] <= (1 + _WORTH) * least_j:
                return min(2 * size - 1, self._most)
        return self._most
