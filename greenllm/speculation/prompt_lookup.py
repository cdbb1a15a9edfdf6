"""Prompt lookup: what followed the last few tokens when they stood in the text before.

The last 4 or 3 tokens are looked for first, at their latest earlier place (Saxena, 2023, "prompt
lookup decoding"). If they are new, the text may be a copy that has just been changed in a few
tokens: where those before the change stand earlier, the copy goes on where the newest token stands
after them. Then the last 2 tokens are looked for, and the newest alone if it stood there only once:
that is weaker evidence, so few tokens are drafted from it. A draft that runs into the end of the
text goes on with itself, so that a repetition is foreseen however short it is.

Not covered: texts of other requests; alternatives (one token at each place).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

LONG = (4, 3)
AFTER_TWO, AFTER_ONE = 4, 2
# A change is noticed when it made at most so many tokens of at most so many.
_CHANGED, _ORIGINAL = 6, 6
_KEY = 3


def look_up(token_ids: Sequence[int], num_tokens: int) -> tuple[int, ...]:
    """Up to `num_tokens` draft tokens; none when the end is new."""
    text = array("i", token_ids)
    for size in LONG:
        if (place := _last_place(text, size)) is not None:
            return _continued(text, place + size, num_tokens)
    if (place := _after_a_change(text)) is not None:
        return _continued(text, place, num_tokens)
    if (place := _last_place(text, 2)) is not None:
        return _continued(text, place + 2, min(num_tokens, AFTER_TWO))
    if (place := _last_place(text, 1)) is not None and text.count(text[-1]) == 2:
        return _continued(text, place + 1, min(num_tokens, AFTER_ONE))
    return ()


def _after_a_change(text: array[int]) -> int | None:
    """Where a copy goes on whose last few tokens replace others; None if it does not."""
    for changed in range(1, _CHANGED + 1):
        before = text[: len(text) - changed]
        place = _last_place(before, _KEY)
        if place is not None:
            original = place + _KEY
            window = before[original + 1 : original + _ORIGINAL]
            return original + 2 + window.index(text[-1]) if text[-1] in window else None
    return None


def _last_place(text: array[int], size: int) -> int | None:
    """Latest earlier place of the last `size` tokens."""
    if len(text) <= size:
        return None
    width = text.itemsize
    whole, wanted = text.tobytes(), text[-size:].tobytes()
    end = len(whole) - width
    while (found := whole.rfind(wanted, 0, end)) >= 0:
        if found % width == 0:
            return found // width
        end = found + len(wanted) - 1
    return None


def _continued(text: array[int], start: int, num_tokens: int) -> tuple[int, ...]:
    draft: list[int] = []
    for place in range(start, start + num_tokens):
        draft.append(text[place] if place < len(text) else draft[place - len(text)])
    return tuple(draft)
