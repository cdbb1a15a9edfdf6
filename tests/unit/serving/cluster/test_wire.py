"""What a call has in common with earlier ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from serving.cluster.wire import Call, kin_of

BASE = ("m", "base")


def call(body: bytes | Mapping[str, Any], **headers: str) -> Call:
    raw = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call("POST", "/", b"", tuple(raw), data)


def kinds(body: bytes | Mapping[str, Any]) -> list[str]:
    return [kin.partition(":")[0] for kin in kin_of(call(body), BASE)]


def test_headers_are_read_as_text() -> None:
    assert call(b"", x_session_id="caf\xe9").fields == {"x-session-id": "cafÃ©"}


def test_the_strongest_tie_comes_first() -> None:
    body = {"model": "fox", "user": "u", "messages": [{"role": "user", "content": "Hi"}]}
    assert kinds(body) == ["session", "prefix", "adapter"]


def test_the_base_model_is_no_tie() -> None:
    for name in BASE:
        assert kinds({"model": name, "prompt": "Hi"}) == ["prefix"]


@pytest.mark.parametrize(
    ("body", "headers", "session"),
    [
        ({"user": "u"}, {"x_session_id": "s"}, "session:s"),
        ({"user": "u"}, {}, "session:u"),
    ],
)
def test_a_session_is_named_in_several_ways(
    body: dict[str, Any], headers: dict[str, str], session: str
) -> None:
    assert kin_of(call(body, **headers), BASE) == (session,)


def test_the_first_words_make_kin_and_the_later_ones_do_not() -> None:
    begin = "word " * 100
    one, two = (kin_of(call({"model": "m", "prompt": begin + end}), BASE) for end in ("x", "y"))
    assert one == two
    assert one != kin_of(call({"model": "m", "prompt": "other " + begin}), BASE)


def test_the_same_words_to_another_model_are_another_prefix() -> None:
    one, two = (set(kin_of(call({"model": name, "prompt": "Hi"}), BASE)) for name in "ab")
    assert not one & two


def test_calls_of_two_keys_share_neither_words_nor_sessions() -> None:
    """Whoever guesses another's prompt must not see it in where the guess goes."""
    body = {"model": "fox", "user": "u", "prompt": "Hi"}
    one, two, open_ = (
        kin_of(call(body, **headers), BASE)
        for headers in ({"authorization": "Bearer a"}, {"authorization": "Bearer b"}, {})
    )
    assert one == kin_of(call(body, authorization="Bearer a"), BASE)
    assert set(one) & set(two) == set(one) & set(open_) == {"adapter:fox"}


def test_ids_and_messages_have_prefixes_too() -> None:
    assert kinds({"prompt": [1, 2, 3]}) == ["prefix"]
    assert kin_of(call({"prompt": [1, 2]}), BASE) != kin_of(call({"prompt": [2, 1]}), BASE)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"5",
        b"\xff",
        b"[" * 100_000,
        b'{"user": 5, "model": ["m"], "prompt": ""}',
        b'{"user": "", "model": "", "messages": []}',
        b"9" * 5000,
    ],
)
def test_bodies_that_say_nothing_have_no_kin(body: bytes) -> None:
    assert kin_of(call(body), BASE) == ()


def test_no_depth_of_a_body_is_too_much() -> None:
    for depth in range(1, 1200):
        kin_of(call(b'{"prompt":' + b"[" * depth + b"]" * depth + b"}"), BASE)
    assert kinds(b'{"prompt":' + b"[" * 9 + b"]" * 9 + b"}") == ["prefix"]


def test_text_that_is_half_a_character_has_a_prefix() -> None:
    assert kinds(b'{"prompt": "\\ud800"}') == ["prefix"]
