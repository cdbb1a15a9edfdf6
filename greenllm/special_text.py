"""Special tokens in what people write: text, while those that the chat template writes stay tokens.

Before messages are rendered, what is written in them like a special token gets a mark before and
after it. Marked pieces are then encoded as if there were no such tokens, everything between them as
ever: texts without any have the ids that they have without this module. transformers 5.21 can do
the same (`sanitize_control_tokens`); vLLM needs an older one.

Not covered: special tokens that the tokenizer also finds in other spellings (`normalized`), and
tokens that are not special.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from greenllm.core import InvalidRequestError

# Of Unicode's private use; taken out of messages before they could be taken for marks.
_BEGIN, _END = "\U000f0000", "\U000f0001"
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}|[{_BEGIN}{_END}]")
Encode = Callable[[str], Sequence[int]]


class SpecialText:
    """Marks what is written like one of the special `tokens`, and encodes what was rendered.

    `encode` is the tokenizer's own way, special tokens included.
    """

    def __init__(self, tokens: Mapping[str, int], fast: FastTokenizer | None, encode: Encode):
        self._tokens = tokens
        self._ids = frozenset(tokens.values())
        self._fast = fast
        self._encode = encode

    def is_in(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts holds a special token."""
        return any(token in text for text in texts for token in self._tokens)

    def mark(self, text: str) -> str:
        """The text with its special tokens marked."""
        text = text.replace(_BEGIN, "").replace(_END, "")
        for token in self._tokens:
            text = text.replace(token, f"{_BEGIN}{token}{_END}")
        return text

    def encode(self, rendered: str) -> list[int]:
        """Ids of a text with marks in it; the marks are no part of it.

        Raises:
            InvalidRequestError: the tokenizer has no other way to write one of the marked tokens.
        """
        first, *others = _MARKED.split(rendered)
        ids = list(self._encode(first))
        for marked, ordinary in zip(others[::2], others[1::2], strict=True):
            if marked:
                ids += self._written(marked)
            if ordinary:
                ids += _after_a_line(ordinary, self._encode)
        return ids

    def _written(self, piece: str) -> Sequence[int]:
        """Ids of a marked piece, none of which is a special token's."""
        if self._fast is not None:
            ids = _after_a_line(piece, partial(_without_added_tokens, self._fast))
            if self._ids.isdisjoint(ids):
                return ids
        raise InvalidRequestError(
            f"the messages hold the special token {piece}, which this model's tokenizer cannot"
            " write as text: leave it out (or start the server with --parse-special)",
            "messages",
        )


def _without_added_tokens(fast: Any, text: str) -> list[int]:
    """Ids as the model of text makes them, which knows no tokens but its own."""
    if fast.normalizer is not None:
        text = fast.normalizer.normalize_str(text)
    words = [text]
    if fast.pre_tokenizer is not None:
        words = [word for word, _ in fast.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in fast.model.tokenize(word)]


def _after_a_line(piece: str, encode: Encode) -> Sequence[int]:
    """Ids of a piece that is no beginning, before which some tokenizers would put a space."""
    line, found = encode("\n"), encode("\n" + piece)
    return found[len(line) :] if found[: len(line)] == line else encode(piece)
