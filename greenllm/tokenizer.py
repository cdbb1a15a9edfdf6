"""Text to ids and back, and chat templates, through the model's own tokenizer.

Contract: special tokens in a text to complete are tokens; those in messages are text, unless
`parse_special`. Templates are rendered in Jinja's immutable sandbox, as transformers makes it; what
they raise is the request's fault. Not covered: images and audio in messages, tools in templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

from greenllm.core import GreenllmError, InvalidRequestError, SamplingParams
from greenllm.special_text import SpecialText
from greenllm.text import TextStream


def _byte_characters() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE (GPT-2) uses for the 256 bytes, reversed."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTE_OF = _byte_characters()
# Ids that are no text yet; no character needs as many, and each is looked at with every new one.
_MOST_UNTOLD = 64
_LONGEST_REASON = 500
_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenizerError(GreenllmError):
    """The model has no tokenizer that can be used."""


class _FastSteps:
    """Incremental decoding that survives ids no text could have produced.

    The decoder raises a bare Exception when a byte sequence turns invalid after the fact; then what
    it had not told yet is decoded at once, and a fresh decoder goes on. So it is when it has told
    nothing for too long.
    """

    def __init__(self, fast: FastTokenizer, decode: Callable[[list[int]], str]) -> None:
        self._fast = fast
        self._decode = decode
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._untold: list[int] = []

    def __call__(self, token_id: int) -> str | None:
        self._untold.append(token_id)
        text: str | None
        try:
            text = self._decoder.step(self._fast, token_id)
        except Exception:
            text = self._told_at_once()
        if text is None and len(self._untold) >= _MOST_UNTOLD:
            text = self._told_at_once()
        if text is not None:
            self._untold.clear()
        return text

    def _told_at_once(self) -> str:
        self._decoder = DecodeStream(skip_special_tokens=True)
        return self._decode(self._untold)


class Tokenizer:
    """A thin face over a transformers tokenizer."""

    def __init__(self, hf: Any, *, parse_special: bool = False) -> None:
        self._hf = hf
        self._parse_special = parse_special
        self._fast: FastTokenizer | None = getattr(hf, "backend_tokenizer", None)
        self._special_ids = frozenset(hf.all_special_ids)
        self._is_byte_level = self._fast is not None and "ByteLevel" in repr(self._fast.decoder)
        self.token_text = lru_cache(maxsize=65536)(self._token_text)

    @property
    def vocab_size(self) -> int:
        """Ids the tokenizer knows, added tokens included."""
        return len(self._hf)

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return bool(self._hf.chat_template)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text.

        Raises:
            InvalidRequestError: it is not valid Unicode, as half of a surrogate pair is not.
        """
        try:
            ids: list[int] = self._hf.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequestError("the text is not valid Unicode", "prompt") from error
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        text: str = self._hf.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def _token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What one id stands for, leading space and parts of characters included."""
        piece: str = self._hf.convert_ids_to_tokens(token_id) or ""
        if token_id in self._special_ids:
            return piece.encode()
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        if self._is_byte_level:
            return bytes(_BYTE_OF.get(char, ord("?")) for char in piece)
        return piece.replace("\u2581", " ").encode()

    def is_special(self, token_id: int) -> bool:
        """Whether an id is left out of decoded text."""
        return token_id in self._special_ids

    def chat_ids(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> list[int]:
        """Ids of messages, rendered with the model's template.

        Raises:
            InvalidRequestError: see `chat`; or they hold what cannot be encoded.
        """
        render = partial(self.chat, add_generation_prompt=add_generation_prompt)
        special = self._special_text
        texts = (text for message in messages for text in message.values())
        if self._parse_special or not special.is_in(texts):
            return self.encode(render(messages), add_special_tokens=False)
        marked = [{key: special.mark(text) for key, text in one.items()} for one in messages]
        return special.encode(render(marked))

    @cached_property
    def _special_text(self) -> SpecialText:
        """Without single characters: some models pad with `!`, which everybody writes."""
        added = self._hf.added_tokens_decoder.items()
        special = [(token.content, token_id) for token_id, token in added if token.special]
        tokens = {text: token_id for text, token_id in special if len(text.strip()) > 1}
        return SpecialText(tokens, self._fast, partial(self.encode, add_special_tokens=False))

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """Render messages with the model's template.

        Raises:
            InvalidRequestError: there is no template, or it rejects the messages.
        """
        if not self.has_chat_template:
            raise InvalidRequestError(
                "this model has no chat template: it only completes texts", "messages"
            )
        try:
            text: str = self._hf.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:
            # A template is a program of the model's: it may raise anything.
            reason = f"{error}"[:_LONGEST_REASON]
            raise InvalidRequestError(f"the chat template says: {reason}", "messages") from error
        return text

    def stream(self, params: SamplingParams) -> TextStream:
        """A text sink for one answer."""
        if self._fast is None:
            return self._slow_stream(params)
        step = _FastSteps(self._fast, self.decode)
        return TextStream(step, self.decode, stop=params.stop, min_tokens=params.min_tokens)

    def _slow_stream(self, params: SamplingParams) -> TextStream:
        """The same for tokenizers without a fast backend: decode everything, send the new part."""
        ids: list[int] = []
        sent = ""

        def step(token_id: int) -> str | None:
            nonlocal sent
            ids.append(token_id)
            text = self.decode(ids)
            if text.endswith("\ufffd") or not text.startswith(sent):
                return None
            new, sent = text[len(sent) :], text
            return new

        return TextStream(
            step,
            lambda _: self.decode(ids)[len(sent) :],
            stop=params.stop,
            min_tokens=params.min_tokens,
        )

    def describe(self) -> dict[str, Any]:
        """What `/tokenizer_info` answers: class, special tokens and chat template."""
        special = self._hf.special_tokens_map
        return {
            "tokenizer_class": type(self._hf).__name__,
            "vocab_size": self.vocab_size,
            "chat_template": self._hf.chat_template,
            **{name: special.get(name) for name in ("bos_token", "eos_token", "pad_token")},
        }


def load_tokenizer(
    source: str, *, trust_remote_code: bool = False, parse_special: bool = False
) -> Tokenizer:
    """Load the tokenizer of a model folder or hub id.

    Raises:
        TokenizerError: there is none, or it is broken.
    """
    from transformers import AutoTokenizer  # which takes a second

    try:
        hf = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TokenizerError(f"cannot load the tokenizer of {source}: {reason}") from error
    return Tokenizer(hf, parse_special=parse_special)
