"""Prompt lookup: what followed the last few tokens when they stood in the text before.

The longest of the last 4, 3 or 2 tokens that occur earlier is taken, at its latest place (Saxena,
2023, "prompt lookup decoding"). A guess that runs into the end of the text goes on with itself, so
that a repetition is foreseen however short it is.

Not covered: texts of other requests; alternatives (one guess at each place).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2


def look_up(token_ids: Sequence[int], num_tokens: int) -> tuple[int, ...]:
    """Up to `num_tokens` guesses of what follows; none when the end is new."""
    text = array("i", token_ids)
    for size in range(min(LONGEST, len(text) - 1), SHORTEST - 1, -1):
        start = _last_place(text, size)
        if start is not None:
            return _continued(text, start + size, num_tokens)
    return ()


def _last_place(text: array[int], size: int) -> int | None:
    """Latest earlier place of the last `size` tokens."""
    width = text.itemsize
    whole, wanted = text.tobytes(), text[-size:].tobytes()
    end = len(whole) - width
    while (found := whole.rfind(wanted, 0, end)) >= 0:
        if found % width == 0:
            return found // width
        end = found + len(wanted) - 1
    return None


def _continued(text: array[int], start: int, num_tokens: int) -> tuple[int, ...]:
    guesses: list[int] = []
    for place in range(start, start + num_tokens):
        guesses.append(text[place] if place < len(text) else guesses[place - len(text)])
    return tuple(guesses)
