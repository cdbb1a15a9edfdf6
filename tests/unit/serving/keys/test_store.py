"""The keys file and what a server knows of it: whole, private, and never lost to a bad edit."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.keys.caller import PLAIN, STRANGER, Caller
from serving.keys.limits import Limits
from serving.keys.ring import LOOK_EVERY_S, KeyRing, fingerprint
from serving.keys.store import Key, KeyFileError, change_keys, hash_of, new_token, read_keys

NOW_S = 1_800_000_000.0


def key(name: str, **fields: Any) -> Key:
    values = {"scopes": frozenset({"inference"}), "sha256": hash_of(name.encode()), **fields}
    return Key(name=name, **values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "keys.json"


def test_keys_come_back_as_they_were_and_only_their_owner_reads_them(path: Path) -> None:
    keys = (
        key("ada", team="red", limits=Limits(tokens_per_minute=5, grams_per_day=0.5)),
        key("ops", scopes=frozenset({"admin", "metrics"}), created_s=1, expires_s=2, revoked_s=3),
    )
    change_keys(path, lambda _: keys)
    assert read_keys(path) == keys
    for made in (path, path.with_name("keys.json.lock")):
        assert made.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_tokens_are_long_and_kept_by_their_hash_only(path: Path) -> None:
    token = new_token()
    assert len(token) >= 43
    assert token != new_token()
    change_keys(path, lambda _: [key("ada", sha256=hash_of(token.encode()))])
    assert token not in path.read_text()


def test_changes_at_once_are_made_one_after_the_other(path: Path) -> None:
    def add(name: str) -> None:
        change_keys(path, lambda known: [*known, key(name)])

    threads = [threading.Thread(target=add, args=(f"k{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {found.name for found in read_keys(path)} == {f"k{i}" for i in range(8)}


def test_a_change_that_fails_changes_nothing(path: Path) -> None:
    change_keys(path, lambda _: [key("ada")])

    def refuse(known: Sequence[Key]) -> Sequence[Key]:
        raise KeyFileError("no")

    with pytest.raises(KeyFileError, match="no"):
        change_keys(path, refuse)
    assert [found.name for found in read_keys(path)] == ["ada"]


ADA = {"name": "ada", "sha256": hash_of(b"ada"), "scopes": ["inference"]}


GARBLED: list[Any] = [
    [5], [{}], [{**ADA, "colour": "red"}], [{**ADA, "scopes": []}],
    [{**ADA, "scopes": ["root"]}], [{**ADA, "scopes": "inference"}],
    [{**ADA, "name": "../ada"}], [{**ADA, "name": "key-0123"}],
    [{**ADA, "sha256": "glk-plain"}], [{**ADA, "limits": {"joules_per_day": -1}}],
    [{**ADA, "limits": {"joules_per_day": "1"}}], [{**ADA, "limits": {"wishes": 3}}],
    [{**ADA, "expires_s": "soon"}], [{**ADA, "expires_s": True}], [ADA, ADA],
]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 2, "keys": []}',
        '{"version": 1}',
        *(json.dumps({"version": 1, "keys": keys}) for keys in GARBLED),
    ],
)
def test_a_garbled_file_is_named_and_not_written_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    for act in (lambda: read_keys(path), lambda: change_keys(path, lambda known: known)):
        with pytest.raises(KeyFileError, match=str(path)):
            act()
    assert path.read_text() == content


class Time:
    def __init__(self) -> None:
        self.passed_s = 0.0

    def ring(self, *tokens: str, path: Path | None = None, share: bool = False) -> KeyRing:
        return KeyRing(
            tokens, path, lambda: self.passed_s, lambda: NOW_S + self.passed_s, share_cache=share
        )


def test_without_keys_everybody_is_an_administrator_by_a_name_but_owns_nothing() -> None:
    ring = Time().ring()
    for token in (None, b"any"):
        found = ring.find(token)
        assert found is not None
        assert (found.is_admin, found.owner, found.cache_salt) == (True, None, None)
        assert found.name == (None if token is None else fingerprint(token))


def test_no_key_is_never_one(path: Path) -> None:
    """Also where somebody has written the hash of nothing into the file."""
    change_keys(path, lambda _: [key("nothing", sha256=hash_of(b""))])
    ring = Time().ring(path=path)
    assert ring.find(None) is ring.find(b"") is None


def test_plain_keys_have_every_scope_but_admin() -> None:
    ring = Time().ring("one", "\u00e9")
    for token in ("one", "\u00e9"):
        found = ring.find(token.encode())
        name = fingerprint(token.encode())
        assert found == Caller(name, PLAIN, cache_salt=name)
    assert ring.find(b"two") is ring.find(None) is ring.find(b"") is None


@pytest.mark.parametrize(
    "fields", [{"expires_s": int(NOW_S) - 1}, {"revoked_s": 1}, {"revoked_s": int(NOW_S) + 9}]
)
def test_expired_and_revoked_keys_are_none(path: Path, fields: dict[str, int]) -> None:
    change_keys(path, lambda _: [key("ada", **fields)])
    assert Time().ring(path=path).find(b"ada") is None


def test_a_key_ends_while_the_server_runs(path: Path) -> None:
    change_keys(path, lambda _: [key("ada", expires_s=int(NOW_S) + 10)])
    time = Time()
    ring = time.ring(path=path)
    assert ring.find(b"ada") is not None
    time.passed_s += 10
    assert ring.find(b"ada") is None


def test_a_file_without_keys_lets_nobody_in(path: Path) -> None:
    change_keys(path, lambda _: [])
    ring = Time().ring(path=path)
    assert ring.is_required
    assert ring.find(None) is ring.find(b"any") is None


@pytest.mark.parametrize(("share", "salt"), [(False, "ada"), (True, None)])
def test_callers_have_the_cache_to_themselves_unless_it_is_shared(
    path: Path, share: bool, salt: str | None
) -> None:
    change_keys(path, lambda _: [key("ada")])
    found = Time().ring(path=path, share=share).find(b"ada")
    assert found is not None
    assert found.cache_salt == salt


def test_changes_are_noticed_and_a_bad_edit_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_keys(path, lambda _: [key("ada")])
    time = Time()
    ring = time.ring(path=path)

    def known(name: str) -> bool:
        time.passed_s += LOOK_EVERY_S
        return ring.find(name.encode()) is not None

    change_keys(path, lambda keys: [*keys, key("bob")])
    assert known("bob")
    path.write_text("{")
    assert known("bob")
    assert known("ada")
    assert caplog.text.count("garbled") == 1, "it is said once"
    os.unlink(path)
    assert known("ada")
    change_keys(path, lambda _: [key("bob")])
    assert known("bob")
    assert not known("ada")


def test_a_server_does_not_start_without_its_file(path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        Time().ring(path=path)


@pytest.mark.parametrize(
    ("caller", "sees", "changes"),
    [
        (Caller("ada"), {"ada", "*"}, {"ada"}),
        (Caller("ops", frozenset({"admin"})), {"ada", "bob", "*", None}, {"ada", "bob", "*", None}),
        (Caller("ada", known=False), {"*"}, set()),
        (STRANGER, {"*"}, set()),
    ],
)
def test_who_sees_and_changes_what(
    caller: Caller, sees: set[str | None], changes: set[str | None]
) -> None:
    owners = ("ada", "bob", "*", None)
    assert {owner for owner in owners if caller.may_see(owner)} == sees
    assert {owner for owner in owners if caller.may_change(owner)} == changes
