"""Text streams equal whole decodings, chat templates render, and what is missing is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from greenllm.core import InvalidRequestError, SamplingParams
from greenllm.model.options import resolve
from greenllm.tokenizer import Tokenizer, TokenizerError, load_tokenizer

TEXT = "Zoë says: “日本語” 👩🏽‍🚀 naïve café\n\n\tend  "
USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="session")
def bundled() -> Tokenizer:
    """The tokenizer of the bundled model."""
    return load_tokenizer(resolve("bundled"))


@pytest.fixture(scope="session", params=["tokenizer-gpt2", "tokenizer-qwen2.5"])
def foreign(request: pytest.FixtureRequest, data: Callable[[str], Path]) -> Tokenizer:
    """Real tokenizers of other models."""
    folder = data(request.param)
    if (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(str(folder))
    return Tokenizer(GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")))


def _streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], str]:
    stream = tokenizer.stream(SamplingParams())
    pieces = [stream.decode(token_id) for token_id in ids]
    return pieces, stream.rest()


@settings(max_examples=400, derandomize=True)
@given(text=st.text(max_size=40))
@example(TEXT)
def test_a_streamed_text_is_the_text(bundled: Tokenizer, text: str) -> None:
    ids = bundled.encode(text, add_special_tokens=False)
    pieces, rest = _streamed(bundled, ids)
    assert "".join(pieces) + rest == bundled.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(max_examples=400, derandomize=True)
@given(ids=st.lists(st.integers(0, 1023), max_size=30))
def test_random_ids_stream_to_their_decoding(bundled: Tokenizer, ids: list[int]) -> None:
    """Broken characters and special tokens included."""
    pieces, rest = _streamed(bundled, ids)
    assert "".join(pieces) + rest == bundled.decode(ids)


@pytest.mark.parametrize("piece", [b"\xbf", b"<|im_end|>"])
def test_ids_that_are_no_text_are_not_looked_at_again_and_again(
    bundled: Tokenizer, piece: bytes
) -> None:
    """Bytes that begin no character, ends that do not end: each step costs the same."""
    token_id = next(i for i in range(1024) if bundled.token_bytes(i) == piece)
    word = bundled.encode(" fox", add_special_tokens=False)
    longest: list[int] = []

    class Watched(Tokenizer):
        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
            longest.append(len(token_ids))
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens)

    ids = [*[token_id] * 500, *word]
    pieces, rest = _streamed(Watched(bundled._hf), ids)
    assert "".join(pieces) + rest == bundled.decode(ids)
    assert 3 < len(longest) < 20
    assert max(longest) <= 64


def test_foreign_tokenizers_stream_too(foreign: Tokenizer) -> None:
    ids = foreign.encode(TEXT)
    pieces, rest = _streamed(foreign, ids)
    assert "".join(pieces) + rest == TEXT
    assert sum(bool(piece) for piece in pieces) > 10
    for start in range(0, foreign.vocab_size - 40, 4999):
        some = list(range(start, start + 40))
        pieces, rest = _streamed(foreign, some)
        assert "".join(pieces) + rest == foreign.decode(some)


def test_a_stop_string_ends_the_stream(bundled: Tokenizer) -> None:
    stream = bundled.stream(SamplingParams(stop=("day",)))
    pieces: list[str] = []
    for token_id in bundled.encode("One day, they", add_special_tokens=False):
        pieces.append(stream.decode(token_id))
        if stream.stopped:
            break
    assert "".join(pieces) == "One "
    assert stream.rest() == ""


def test_the_chat_template_renders(bundled: Tokenizer) -> None:
    prompt = bundled.chat(USER, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert bundled.chat(USER, add_generation_prompt=False) == prompt.removesuffix(
        "<|im_start|>assistant\n"
    )
    ids = bundled.encode(prompt, add_special_tokens=False)
    assert bundled.decode(ids, skip_special_tokens=False) == prompt
    assert "<|" not in bundled.decode(ids)
    assert bundled.token_text(ids[0]) == "<|im_start|>"


def test_a_missing_template_is_the_request_s_fault(bundled: Tokenizer) -> None:
    bare = Tokenizer(PreTrainedTokenizerFast(tokenizer_file=resolve("bundled") + "/tokenizer.json"))
    assert bundled.has_chat_template
    assert not bare.has_chat_template
    with pytest.raises(InvalidRequestError, match="no chat template") as caught:
        bare.chat(USER, add_generation_prompt=True)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('system first') }}", "{{ messages[7].content }}", "{% if %}"]
)
def test_a_template_that_rejects_is_the_request_s_fault(template: str) -> None:
    hf = PreTrainedTokenizerFast(tokenizer_file=resolve("bundled") + "/tokenizer.json")
    hf.chat_template = template
    with pytest.raises(InvalidRequestError, match="the chat template says") as caught:
        Tokenizer(hf).chat(USER, add_generation_prompt=True)
    assert caught.value.param == "messages"


def test_description(bundled: Tokenizer) -> None:
    description = bundled.describe()
    assert description["vocab_size"] == bundled.vocab_size == 1024
    assert description["eos_token"] == "<|im_end|>"
    assert description["pad_token"] == "<|pad|>"
    assert description["bos_token"] is None
    assert "<|im_start|>" in description["chat_template"]
    assert description["tokenizer_class"]


def test_foreign_templates(foreign: Tokenizer) -> None:
    if foreign.has_chat_template:
        text = foreign.chat(USER, add_generation_prompt=True)
        assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    else:
        with pytest.raises(InvalidRequestError, match="no chat template"):
            foreign.chat(USER, add_generation_prompt=True)
    assert foreign.describe()["vocab_size"] == foreign.vocab_size > 50_000


class _Slow:
    """A tokenizer of bytes, without a fast backend."""

    all_special_ids: ClassVar[list[int]] = []

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def test_tokenizers_without_a_fast_backend_stream_too() -> None:
    ids = [*TEXT.encode(), 0xE2, 0x82]
    pieces, rest = _streamed(Tokenizer(_Slow()), ids)
    assert "".join(pieces) == TEXT
    assert rest == "\ufffd"


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_no_tokenizer(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match="cannot load the tokenizer of") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def _byte_fallback() -> Tokenizer:
    """A SentencePiece-like tokenizer: pieces with a lower block for spaces, bytes as fallback."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {piece: 256 + i for i, piece in enumerate(["\u2581", "\u2581Hi", "there"])}
    fast = FastTokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast))


@settings(max_examples=200)
@given(st.lists(st.integers(0, 258), max_size=30))
@example([60, 208, 90, 90, 60, 208])
def test_no_ids_can_break_a_stream_over_bytes(ids: list[int]) -> None:
    pieces, rest = _streamed(_byte_fallback(), ids)
    assert ("".join(pieces) + rest).count("there") >= ids.count(258)


def test_tokens_have_their_own_bytes() -> None:
    tokenizer = _byte_fallback()
    assert tokenizer.token_bytes(0xE2) == b"\xe2"
    assert tokenizer.token_text(257) == " Hi"
    assert tokenizer.token_text(258) == "there"
    assert tokenizer.token_text(0xE2) == "\ufffd"


def test_bytes_of_byte_level_tokens_are_those_of_the_text(bundled: Tokenizer) -> None:
    text = "Grün, 10 €: \U0001f98a"
    ids = bundled.encode(text)
    assert b"".join(bundled.token_bytes(token_id) for token_id in ids) == text.encode()
    assert bundled.token_text(ids[0])[0] == "G"
    assert bundled.is_special(2)
    assert not bundled.is_special(ids[0])
