"""What the front and the replicas say to each other: one HTTP request, and its answer in parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from serving.limits import has_too_many_values

SESSION_HEADER = "x-session-id"
_PREFIX_CHARACTERS = 256
# Of an answer that is none: whoever got the call cannot work on it, somebody else should.
PASSED_ON = (b"x-passed-on", b"true")


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, its body read; header names are in small letters."""

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    client: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """Headers as text."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an answer."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class BodyPart:
    """A piece of an answer's body; `more` is False for the last."""

    body: bytes
    more: bool


@dataclass(slots=True)
class Ticket:
    """Where a call should go, and where it went: written by the router, in the front's process.

    `kin` are what it has in common with earlier calls, the strongest tie first; `target` is the one
    replica it may go to; `shunned` are those that it has been lost on.
    """

    kin: tuple[str, ...] = ()
    target: str | None = None
    shunned: tuple[str, ...] = ()
    replica: str | None = None


def kin_of(call: Call, base: Collection[str]) -> tuple[str, ...]:
    """What makes one replica better than another for a call: session, first words, adapter.

    A session is the `X-Session-Id` header, or the body's `user`. The base
    model, by any of its names, is no tie: every replica has it. Bodies that cannot be read have no
    kin: the replica says what is wrong with them. Sessions and words tie calls of one key only:
    where a call goes must not tell what others have asked.
    """
    body = _object(call.body)
    session = call.fields.get(SESSION_HEADER) or body.get("user")
    model, words = body.get("model"), _first_words(body)
    key = call.fields.get("authorization")
    whose = "" if key is None else f"{_digest(key)}:"
    found = {
        "session": whose + session if isinstance(session, str) and session else None,
        "prefix": None if words is None else f"{whose}{model}:{_digest(words)}",
        "adapter": model if isinstance(model, str) and model not in base else None,
    }
    return tuple(f"{kind}:{value}" for kind, value in found.items() if value)


def _object(body: bytes) -> Mapping[str, Any]:
    if has_too_many_values(body):
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _first_words(body: Mapping[str, Any]) -> str | None:
    """How a prompt begins, in the words or ids that were sent."""
    start = body.get("messages") or body.get("prompt")
    return None if not start else json.dumps(start)[:_PREFIX_CHARACTERS]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
