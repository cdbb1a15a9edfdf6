"""Text to ids and back, and chat templates, through the model's own tokenizer.

Not covered: images and audio in messages, tools in templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from greenllm.core import GreenllmError, InvalidRequestError, SamplingParams
from greenllm.text import TextStream


class TokenizerError(GreenllmError):
    """The model has no tokenizer that can be used."""


class Tokenizer:
    """A thin face over a transformers tokenizer."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._fast: FastTokenizer | None = getattr(hf, "backend_tokenizer", None)
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
        """Ids of a text."""
        ids: list[int] = self._hf.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        text: str = self._hf.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def _token_text(self, token_id: int) -> str:
        return self.decode([token_id], skip_special_tokens=False)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Render messages with the model's template.

        Raises:
            InvalidRequestError: there is no template, or it rejects the messages.
        """
        if not self.has_chat_template:
            raise InvalidRequestError(
                "this model has no chat template; use /v1/completions", "messages"
            )
        try:
            text: str = self._hf.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, ValueError) as error:
            raise InvalidRequestError(f"the chat template says: {error}", "messages") from error
        return text

    def stream(self, params: SamplingParams) -> TextStream:
        """A text sink for one answer."""
        if self._fast is None:
            return self._slow_stream(params)
        fast, decoder = self._fast, DecodeStream(skip_special_tokens=True)
        return TextStream(
            lambda token_id: decoder.step(fast, token_id),
            self.decode,
            stop=params.stop,
            min_tokens=params.min_tokens,
        )

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


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> Tokenizer:
    """Load the tokenizer of a model folder or hub id.

    Raises:
        TokenizerError: there is none, or it is broken.
    """
    try:
        hf = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TokenizerError(f"cannot load the tokenizer of {source}: {reason}") from error
    return Tokenizer(hf)
