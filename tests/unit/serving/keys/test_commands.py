"""`greenllm keys`, as it is called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from greenllm.__main__ import main
from serving.keys.audit import AuditLog
from serving.keys.store import hash_of, read_keys

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("GREENLLM_DATA_DIR", str(tmp_path))

    def keys(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["greenllm", "keys", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return keys


def test_a_key_from_its_beginning_to_its_end(run: Run, tmp_path: Path) -> None:
    limits = ("--tokens-per-minute", "500", "--joules-per-day", "2.5", "--expires-days", "2")
    code, out, err = run(
        "create", "ada", "--team", "red", "--scopes", "inference,finetune", *limits
    )
    token = out.strip()
    assert (code, out.count("\n")) == (0, 1), "nothing but the key, for scripts"
    assert "shown once" in err
    path = tmp_path / "keys.json"
    (made,) = read_keys(path)
    assert (made.name, made.team, made.sha256) == ("ada", "red", hash_of(token.encode()))
    assert made.scopes == {"inference", "finetune"}
    assert (made.limits.tokens_per_minute, made.limits.joules_per_day) == (500, 2.5)
    assert (made.expires_s or 0) - made.created_s == 2 * 86_400
    code, out, _ = run("list")
    assert (code, token in out) == (0, False)
    assert all(word in out for word in ("ada", "red", "finetune, inference", "active", "500"))
    code, out, _ = run("rotate", "ada")
    (rotated,) = read_keys(path)
    assert rotated.sha256 == hash_of(out.strip().encode()) != made.sha256
    assert run("revoke", "ada")[0] == 0
    assert "revoked" in run("list")[1]
    for act in ("create", "rotate", "revoke"):
        code, out, err = run(act, "ada")
        assert (code, out) == (2, "")
        assert "'ada'" in err
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["did"], line["what"].split()[0]) for line in lines] == [
        ("key.create", "ada"), ("key.rotate", "ada"), ("key.revoke", "ada"),
    ]  # fmt: skip
    assert all(line["who"].endswith("@shell") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "is no name for a key"),
        (("a b",), "is no name for a key"),
        (("key-1",), "begins no name"),
        (("ada", "--scopes", "root"), "scopes are inference, finetune, metrics, admin, not root"),
        (("ada", "--scopes", ""), "a key needs a scope"),
        (("ada", "--tokens-per-minute", "0"), "--tokens-per-minute must be greater than 0"),
        (("ada", "--grams-per-day", "nan"), "must be finite"),
        (("ada", "--team", "a/b"), "team is no name"),
    ],
)
def test_what_is_no_key_is_refused(run: Run, arguments: tuple[str, ...], reason: str) -> None:
    code, out, err = run("create", *arguments)
    assert (code, out) == (2, "")
    assert reason in " ".join(err.split())


def test_another_file_may_be_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "k.json"
    assert run("create", "ada", "--keys-file", str(path))[0] == 0
    assert run("rotate", "ada", "--keys-file", str(path))[0] == 0
    assert "ada" in run("list", "--keys-file", str(path))[1]
    assert run("list")[0] == 2
    assert (path.parent / "audit.jsonl").exists()


def test_an_expired_key_is_not_renewed_but_may_be_revoked(run: Run) -> None:
    assert run("create", "ada", "--expires-days", "1e-9")[0] == 0
    code, out, err = run("rotate", "ada")
    assert (code, out) == (2, "")
    assert "'ada' is expired; create another" in " ".join(err.split())
    assert run("revoke", "ada")[0] == 0
    assert run("revoke", "bob")[2].startswith("greenllm: there is no key 'bob'")


def test_an_audit_log_that_cannot_be_written_hinders_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    AuditLog(tmp_path / "file" / "audit.jsonl", lambda: 0.0).note("ops", "file.delete", "f")
    assert "file.delete" in caplog.text
