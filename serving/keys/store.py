"""The keys file: JSON that `greenllm keys` writes and a server reads.

    {"version": 1, "keys": [{"name": "ada", "sha256": "9f86...", "scopes": ["inference"], ...}]}

Contract: it holds hashes, never keys. API keys are long random numbers, so a plain SHA-256 cannot
be turned around. A change is written whole or not at all, by one process at a time, to a file that
only its owner reads. A name is never given twice: what a revoked key owned must not pass on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from greenllm.core import GreenllmError
from serving.keys.caller import SCOPES, Caller, Scope
from serving.keys.limits import Limits

PREFIX = "glk-"
FINGERPRINT = "key-"  # what keys without a name are called by
FILE_NAME = "keys.json"
_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


class KeyFileError(GreenllmError):
    """The keys file cannot be used, or not be changed so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key: its hash, who has it, and what it may do. Times are Unix seconds."""

    name: str
    sha256: str
    scopes: frozenset[Scope]
    team: str | None = None
    created_s: int = 0
    expires_s: int | None = None
    revoked_s: int | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse what no key can be; errors are `ValueError`s."""
        _require(bool(_NAME.fullmatch(self.name)), f"{self.name!r} is no name for a key")
        _require(not self.name.startswith(FINGERPRINT), f"{FINGERPRINT} begins no name")
        _require(bool(_HASH.fullmatch(self.sha256)), f"{self.name}: sha256 is no hash")
        _require(self.team is None or bool(_NAME.fullmatch(self.team)), "team is no name")
        _require(bool(self.scopes), f"{self.name}: a key needs a scope")
        if unknown := self.scopes - set(SCOPES):
            raise ValueError(f"scopes are {', '.join(SCOPES)}, not {', '.join(sorted(unknown))}")

    def state(self, now_s: float) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked_s is not None:
            return "revoked"
        return "active" if self.expires_s is None or now_s < self.expires_s else "expired"

    def caller(self, *, cache_salt: str | None) -> Caller:
        """Whoever shows this key."""
        limits, team = self.limits, self.team
        return Caller(self.name, self.scopes, team, limits, cache_salt=cache_salt)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


def new_token() -> str:
    """A fresh API key: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: bytes) -> str:
    """What is kept of a key."""
    return hashlib.sha256(token).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys in a file.

    Raises:
        KeyFileError: it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("version") != _VERSION:
            raise ValueError(f"its version is not {_VERSION}")
        keys = tuple(_key(raw) for raw in found["keys"])
    except OSError as error:
        raise KeyFileError(f"keys file {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise KeyFileError(f"keys file {path} is garbled: {error}") from error
    if len({key.name for key in keys}) < len(keys):
        raise KeyFileError(f"keys file {path} has two keys of one name")
    return keys


def _key(raw: Any) -> Key:
    if unknown := set(raw) - {spec.name for spec in fields(Key)}:
        raise ValueError(f"a key has no {min(unknown)!r}")
    scopes, limits = raw["scopes"], raw.get("limits") or {}
    if not isinstance(scopes, list):
        raise ValueError("scopes must be a list")
    _require_numbers({**limits, **{name: raw.get(name) for name in ("expires_s", "revoked_s")}})
    return Key(**{**raw, "scopes": frozenset(scopes), "limits": Limits(**limits)})


def _require_numbers(values: dict[str, Any]) -> None:
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(value is None or is_number, f"{name} must be a number, not {value!r}")


def change_keys(path: Path, change: Callable[[tuple[Key, ...]], Sequence[Key]]) -> None:
    """Replace the keys in a file, which need not be there; one process at a time.

    Raises:
        KeyFileError: the file is garbled or cannot be written, or `change` refuses with it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path.with_name(f"{path.name}.lock"), "w", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _write(path, change(read_keys(path) if path.exists() else ()))
    except OSError as error:
        raise KeyFileError(f"keys file {path}: {error.strerror}") from error


def _write(path: Path, keys: Sequence[Key]) -> None:
    content = {"version": _VERSION, "keys": [_raw(key) for key in keys]}
    draft = path.with_name(f"{path.name}.part")
    draft.unlink(missing_ok=True)
    with open(draft, "w", encoding="utf-8", opener=_private) as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _raw(key: Key) -> dict[str, Any]:
    """What is not None."""
    values = {name: value for name, value in asdict(key).items() if value is not None}
    limits = {name: value for name, value in values["limits"].items() if value is not None}
    return {**values, "scopes": sorted(key.scopes), "limits": limits}
