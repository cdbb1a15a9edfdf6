"""Text leaves once it is certain, and never the stop string or what follows."""

from __future__ import annotations

import codecs
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greenllm.text import TextStream

SNOWMAN = "☃"


def bytewise(stop: tuple[str, ...] = (), min_tokens: int = 0) -> TextStream:
    """A tokenizer with one id per byte of UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()

    def step(token_id: int) -> str | None:
        return decoder.decode(bytes([token_id])) or None

    return TextStream(
        step,
        lambda ids: bytes(ids).decode("utf-8", errors="replace"),
        stop=stop,
        min_tokens=min_tokens,
    )


def piecewise(pieces: list[str], stop: tuple[str, ...] = (), min_tokens: int = 0) -> TextStream:
    """A tokenizer whose ids are places in `pieces`."""
    return TextStream(pieces.__getitem__, lambda _: "", stop=stop, min_tokens=min_tokens)


def run(stream: TextStream, num_tokens: int) -> list[str]:
    """Push ids 0, 1, ... until the stream stops; the flushed text comes last."""
    sent: list[str] = []
    for token_id in range(num_tokens):
        sent.append(stream.decode(token_id))
        if stream.stopped:
            break
    return [*sent, stream.rest()]


@pytest.mark.parametrize(
    ("pieces", "stop", "sent", "stopped"),
    [
        (["a", "b"], (), ["a", "b", ""], False),
        (["a", "END", "b"], ("END",), ["a", "", ""], True),
        (["aEN", "Db"], ("END",), ["a", "", ""], True),
        (["a", "E", "N", "D", "x"], ("END",), ["a", "", "", "", ""], True),
        (["E", "N", "d"], ("END",), ["", "", "ENd", ""], False),
        (["E", "E", "N", "D"], ("END",), ["", "E", "", "", ""], True),
        (["aE", "N"], ("END",), ["a", "", "EN"], False),
        (["aab", "aac"], ("aabaac",), ["", "", ""], True),
        (["ab", "ac"], ("abab",), ["", "abac", ""], False),
        (["aba", "b"], ("abab",), ["", "", ""], True),
        (["x.", "y"], (".", "y"), ["x", ""], True),
        (["stop here"], ("here", "stop"), ["", ""], True),
        (["say \n", "\nUser:"], ("\n\n", "User:"), ["say ", "", ""], True),
        (["", "a", ""], ("ab",), ["", "", "", "a"], False),
    ],
)
def test_stop_strings(
    pieces: list[str], stop: tuple[str, ...], sent: list[str], stopped: bool
) -> None:
    stream = piecewise(pieces, stop)
    assert run(stream, len(pieces)) == sent
    assert stream.stopped is stopped


def test_a_character_leaves_with_its_last_byte() -> None:
    stream = bytewise()
    assert [stream.decode(byte) for byte in f"a{SNOWMAN}b".encode()] == ["a", "", "", SNOWMAN, "b"]
    assert stream.rest() == ""


def test_a_broken_character_is_flushed_once_as_the_tail_has_it() -> None:
    stream = bytewise()
    assert [stream.decode(byte) for byte in SNOWMAN.encode()[:2]] == ["", ""]
    assert stream.rest() == "\ufffd"
    assert stream.rest() == ""


def test_held_text_and_undecoded_bytes_are_flushed_in_order() -> None:
    stream = bytewise(stop=("END",))
    assert [stream.decode(byte) for byte in b"xEN"] == ["x", "", ""]
    assert stream.decode(SNOWMAN.encode()[0]) == ""
    assert stream.rest() == "EN\ufffd"


def test_a_stop_string_of_long_characters() -> None:
    stream = bytewise(stop=(SNOWMAN * 2,))
    assert "".join(stream.decode(byte) for byte in f"a{SNOWMAN * 2}".encode()) == "a"
    assert stream.stopped
    assert stream.rest() == ""


def test_a_stop_string_completed_by_the_tail_is_cut() -> None:
    stream = bytewise(stop=("N\ufffd",))
    assert [stream.decode(byte) for byte in (*b"aN", SNOWMAN.encode()[0])] == ["a", "", ""]
    assert stream.rest() == ""
    assert stream.stopped


@pytest.mark.parametrize(
    ("pieces", "min_tokens", "sent", "stopped"),
    [
        (["b", "b"], 0, ["", ""], True),
        (["b", "b"], 1, ["", ""], True),
        (["b", "b"], 2, ["b", "", ""], True),
        (["b", "b"], 3, ["b", "b", ""], False),
        (["b", "c", "b"], 2, ["b", "c", "", ""], True),
    ],
)
def test_stop_strings_are_ignored_before_min_tokens(
    pieces: list[str], min_tokens: int, sent: list[str], stopped: bool
) -> None:
    stream = piecewise(pieces, ("b",), min_tokens)
    assert run(stream, len(pieces)) == sent
    assert stream.stopped is stopped


# Stop strings that begin alike and overlap are the hard ones.
tight = st.text(alphabet="ab", min_size=1, max_size=4)


@given(st.lists(st.text(alphabet="ab", max_size=3), max_size=8), tight)
@example(["a", "a", "ab"], "aab")
@example(["aba", "b"], "abab")
def test_one_stop_string_cuts_the_text_however_it_is_split(pieces: list[str], stop: str) -> None:
    stream = piecewise(pieces, (stop,))
    whole = "".join(pieces)
    assert "".join(run(stream, len(pieces))) == whole.partition(stop)[0]
    assert stream.stopped == (stop in whole)


@given(
    st.lists(st.text(alphabet="ab", max_size=3), max_size=8),
    st.lists(tight, max_size=3).map(tuple),
)
def test_of_several_stop_strings_the_first_to_be_complete_cuts(
    pieces: list[str], stop: tuple[str, ...]
) -> None:
    stream = piecewise(pieces, stop)
    sent = run(stream, len(pieces))
    expected = "".join(pieces)
    for end in range(1, len(pieces) + 1):
        text = "".join(pieces[:end])
        places = [text.find(string) for string in stop if string in text]
        if places:
            expected = text[: min(places)]
            break
    assert "".join(sent) == expected
    assert all(expected.startswith("".join(sent[:end])) for end in range(len(sent)))


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=3), max_size=3).map(tuple))
def test_bytes_and_stop_strings_together(text: str, stop: tuple[str, ...]) -> None:
    stream = bytewise(stop)
    sent = ""
    for byte in text.encode():
        sent += stream.decode(byte)
        if stream.stopped:
            break
    sent += stream.rest()
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(s) for s in stop)]
    whole = text[: ends[0]] if ends else text
    cut = min((whole.find(string) for string in stop if string in whole), default=len(whole))
    assert sent == whole[:cut]
    assert stream.stopped == bool(ends)


@given(st.lists(st.text(alphabet="ab", max_size=3), max_size=8), tight, st.integers(0, 9))
def test_text_before_min_tokens_is_never_cut(pieces: list[str], stop: str, min_tokens: int) -> None:
    stream = piecewise(pieces, (stop,), min_tokens)
    early = "".join(pieces[: max(0, min_tokens - 1)])
    late = "".join(pieces[max(0, min_tokens - 1) :])
    enough = len(pieces) >= min_tokens
    expected = early + (late.partition(stop)[0] if enough else late)
    assert "".join(run(stream, len(pieces))) == expected


def test_a_sink_takes_any_decoder() -> None:
    step: Callable[[int], str | None] = {1: "x", 2: None, 3: "yz"}.get
    stream = TextStream(step, lambda ids: f"<{ids}>")
    assert [stream.decode(1), stream.decode(2), stream.decode(3), stream.decode(2)] == [
        "x",
        "",
        "yz",
        "",
    ]
    assert stream.rest() == "<[2]>"
