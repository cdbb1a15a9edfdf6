"""The replicas, as the front sees them.

Contract: `send` yields what a replica answers, and raises `ReplicaLostError` when the replica is
gone, however much it has yielded; closing the iterator tells the replica that the client has left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from serving.cluster.wire import BodyPart, Call, Head, Ticket


class ReplicaLostError(Exception):
    """The replica that had a request is gone."""


class Pool(Protocol):
    """What the front needs of the replicas."""

    def send(self, call: Call, ticket: Ticket) -> AsyncIterator[Head | BodyPart]:
        """A replica's answer."""

    async def describe(self) -> list[dict[str, Any]]:
        """Those that answer."""

    async def metrics(self) -> list[tuple[str, bytes]]:
        """Each one's name and Prometheus text."""

    async def set_adapter(self, name: str, folder: str | None) -> None:
        """Replicas that begin later know an adapter too, or no longer (None)."""

    async def reap(self) -> list[str]:
        """Close the books of replicas that are gone; ids of requests that were lost."""
