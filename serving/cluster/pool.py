"""The replicas, as the front sees them; `RayPool` is the one on Ray Serve.

Contract: `send` yields what a replica answers, and raises `ReplicaLostError` when the replica is
gone, however much it has yielded; closing the iterator tells the replica that the client has left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from serving.cluster.wire import Call, Head, Part, Ticket

_PATIENCE_S = 10.0


class ReplicaLostError(Exception):
    """The replica that had a request is gone."""


class Pool(Protocol):
    """What the front needs of the replicas."""

    def send(self, call: Call, ticket: Ticket) -> AsyncIterator[Head | Part]:
        """A replica's answer."""

    async def describe(self) -> list[dict[str, Any]]:
        """Those that answer."""

    async def metrics(self) -> list[tuple[str, bytes]]:
        """Each one's name and Prometheus text."""

    async def set_adapter(self, name: str, folder: str | None) -> None:
        """Replicas that begin later know an adapter too, or no longer (None)."""

    async def reap(self) -> list[str]:
        """Close the books of replicas that are gone; ids of requests that were lost."""


class RayPool:
    """A deployment of Ray Serve, and the keeper of its ledger."""

    def __init__(self, handle: Any, keeper: Any) -> None:
        self._handle = handle
        self._http = handle.options(method_name="http", stream=True)
        self._keeper = keeper

    async def send(self, call: Call, ticket: Ticket) -> AsyncIterator[Head | Part]:
        """See `Pool`."""
        answer = self._http.remote(call, ticket)
        try:
            async for part in answer:
                yield part
        except RayTaskError:
            raise  # a bug in the replica, which is still there
        except (RayError, RayServeException) as error:
            raise ReplicaLostError(ticket.replica or "no replica") from error
        finally:
            answer.cancel()

    async def describe(self) -> list[dict[str, Any]]:
        """See `Pool`."""
        return [found for found in await self._all("describe") if isinstance(found, dict)]

    async def metrics(self) -> list[tuple[str, bytes]]:
        """See `Pool`."""
        return [found for found in await self._all("metrics") if isinstance(found, tuple)]

    async def _all(self, method: str) -> list[Any]:
        """What every replica says that answers; those that are just going do not."""
        answers = self._handle.broadcast(method)
        try:
            found = await answers.results_async(timeout_s=_PATIENCE_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError):
            return []
        return list(found)

    async def set_adapter(self, name: str, folder: str | None) -> None:
        """See `Pool`."""
        await self._keeper.set_adapter.remote(name, folder)

    async def reap(self) -> list[str]:
        """See `Pool`."""
        return cast(list[str], await self._keeper.reap.remote())


def is_alive(actor: str) -> bool:
    """Whether an actor of Ray Serve is still there."""
    try:
        ray.get_actor(actor, namespace="serve")
    except ValueError:
        return False
    return True
