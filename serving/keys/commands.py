"""`greenllm keys`: make, list, rotate and revoke API keys.

Contract: they need no running server; one that uses the file notices within a second. A key is
printed once, alone on standard output, and kept by its hash only. Every change is in the audit log.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

import typer
from rich.console import Console
from rich.table import Table

from greenllm.config import ConfigError, option
from greenllm.figures import UNKNOWN, make_console, make_table, moment, print_table
from greenllm.options import DataOptions
from serving.keys.audit import FILE_NAME as AUDIT_FILE
from serving.keys.audit import AuditLog
from serving.keys.caller import Scope
from serving.keys.limits import DAY_S, Limits
from serving.keys.store import (
    FILE_NAME,
    Key,
    KeyFileError,
    change_keys,
    hash_of,
    new_token,
    read_keys,
)


@dataclass(frozen=True, kw_only=True)
class KeysPlace(DataOptions):
    """Where the keys are."""

    keys_file: Path | None = option(None, "The keys file; default is keys.json in the data folder.")

    @property
    def path(self) -> Path:
        """The keys file."""
        return self.keys_file or self.data_path / FILE_NAME


@dataclass(frozen=True, kw_only=True)
class NamedKey(KeysPlace):
    """One of the keys."""

    panel = "Key"

    name: str = option("", "Its name, in the ledger and in reports; given once and never again.")


@dataclass(frozen=True, kw_only=True)
class NewKey(NamedKey):
    """A key to make."""

    team: str | None = option(None, "Team that it belongs to, for sums.")
    scopes: tuple[str, ...] = option(
        ("inference",), "What it may do, comma-separated: inference, finetune, metrics, admin."
    )
    expires_days: float | None = option(None, "Days until it is not valid any more.")
    requests_per_minute: int | None = option(None, "Requests in a minute, at most.")
    tokens_per_minute: int | None = option(None, "Prompt and answer tokens in a minute, at most.")
    concurrent_requests: int | None = option(None, "Generations at once, at most.")
    joules_per_day: float | None = option(None, "Joules in a day (UTC), at most.")
    grams_per_day: float | None = option(None, "Grams of CO2e in a day (UTC), at most.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("expires_days", *(spec.name for spec in fields(Limits)))

    def key(self, token: str, now_s: float) -> Key:
        """The entry of the file.

        Raises:
            ConfigError: a name or a scope is none.
        """
        days = self.expires_days
        try:
            return Key(
                name=self.name,
                sha256=hash_of(token.encode()),
                scopes=cast(frozenset[Scope], frozenset(self.scopes)),
                team=self.team,
                created_s=int(now_s),
                expires_s=None if days is None else int(now_s + days * DAY_S),
                limits=Limits(**{spec.name: getattr(self, spec.name) for spec in fields(Limits)}),
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error


def create(asked: NewKey) -> None:
    """Make a key and print it."""
    token = new_token()
    key = asked.key(token, time.time())

    def add(keys: tuple[Key, ...]) -> Sequence[Key]:
        if any(known.name == key.name for known in keys):
            raise KeyFileError(f"there is a key {key.name!r} already, or was; choose another name")
        return [*keys, key]

    change_keys(asked.path, add)
    _audit(asked.path, "key.create", f"{key.name} ({', '.join(sorted(key.scopes))})")
    _show_once(token, asked.path)


def rotate(asked: NamedKey) -> None:
    """Replace a key; what it owns and has used stays with its name."""
    token = new_token()
    _change(asked, ("active",), lambda key: replace(key, sha256=hash_of(token.encode())))
    _audit(asked.path, "key.rotate", asked.name)
    _show_once(token, asked.path)


def revoke(asked: NamedKey) -> None:
    """End a key's validity."""
    revoked_s = int(time.time())
    _change(asked, ("active", "expired"), lambda key: replace(key, revoked_s=revoked_s))
    _audit(asked.path, "key.revoke", asked.name)
    done = f"{asked.name} is revoked; servers refuse it within a second"
    make_console().print(done, soft_wrap=True)


def show(asked: KeysPlace) -> None:
    """Print a table of the keys, without the keys."""
    table = key_table(read_keys(asked.path), time.time())
    print_table(make_console(), f"Keys in {asked.path}", table)


def key_table(keys: Sequence[Key], now_s: float) -> Table:
    """One row per key."""
    limits = tuple(spec.name for spec in fields(Limits))
    columns = ("name", "team", "scopes", "state", "created", "expires")
    table = make_table((*columns, *(name.replace("_", " ") for name in limits)), num_text=6)
    for key in keys:
        about = (key.name, key.team or UNKNOWN, ", ".join(sorted(key.scopes)), key.state(now_s))
        expires = UNKNOWN if key.expires_s is None else moment(key.expires_s)
        values = (getattr(key.limits, name) for name in limits)
        shown = (UNKNOWN if value is None else f"{value:g}" for value in values)
        table.add_row(*about, moment(key.created_s), expires, *shown)
    return table


def _change(asked: NamedKey, states: Collection[str], change: Callable[[Key], Key]) -> None:
    """Change one key that is in one of these states."""
    path, name, now_s = asked.path, asked.name, time.time()

    def apply(keys: tuple[Key, ...]) -> Sequence[Key]:
        state = next((key.state(now_s) for key in keys if key.name == name), None)
        if state is None:
            raise KeyFileError(f"there is no key {name!r} in {path}")
        if state not in states:
            raise KeyFileError(f"the key {name!r} is {state}; create another")
        return [change(key) if key.name == name else key for key in keys]

    change_keys(path, apply)


def _audit(path: Path, did: str, what: str) -> None:
    """Who runs the command, as the machine knows him."""
    try:
        who = getpass.getuser()
    except (OSError, KeyError):  # in a container without such a user
        who = str(os.getuid())
    AuditLog(path.with_name(AUDIT_FILE), time.time).note(f"{who}@shell", did, what)


def _show_once(token: str, path: Path) -> None:
    typer.echo(token)
    Console(stderr=True, highlight=False).print(
        f"This key is shown once. It is in {path}, by its hash. A server that was started without"
        " keys stays open until it is started again.",
        soft_wrap=True,
        markup=False,
    )
