"""Who asks, and what that one may see and change.

Contract: things have an owner, the name of a key. An administrator sees and changes everything.
Others see what is theirs and what is everybody's, and change what is theirs. What has no owner is
for administrators alone. Where no keys are required every caller is an administrator.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from greenllm.core import EVERYBODY
from serving.keys.limits import Limits

Scope = Literal["inference", "finetune", "metrics", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
PLAIN: Final[frozenset[Scope]] = frozenset(SCOPES) - {"admin"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a key that is `known`, or anybody where none is required.

    `name` is what the ledger knows it by, also where it is only what a client has called itself.
    Callers share what the prefix cache knows only with those of the same `cache_salt`.
    """

    name: str | None
    scopes: frozenset[Scope] = frozenset()
    team: str | None = None
    limits: Limits = field(default_factory=Limits)
    known: bool = True
    cache_salt: str | None = None

    @property
    def owner(self) -> str | None:
        """Whose the things are that it makes."""
        return self.name if self.known else None

    @property
    def is_admin(self) -> bool:
        """Whether it sees and changes everything."""
        return "admin" in self.scopes

    def has_any(self, scopes: Collection[Scope]) -> bool:
        """Whether it has one of these scopes; an administrator has all."""
        return self.is_admin or not self.scopes.isdisjoint(scopes)

    def may_see(self, owner: str | None) -> bool:
        """Whether it may know of what somebody owns, and use it."""
        return self.may_change(owner) or owner == EVERYBODY

    def may_change(self, owner: str | None) -> bool:
        """Whether it may change what somebody owns, and delete it."""
        return self.is_admin or (owner is not None and owner == self.owner)


STRANGER: Final = Caller(None, known=False)
