"""`pool.Pool` on Ray Serve: a deployment, and the keeper of its ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from serving.cluster.pool import ReplicaLostError
from serving.cluster.wire import PASSED_ON, BodyPart, Call, Head, Ticket

_PATIENCE_S = 5.0


class RayPool:
    """See the module and `pool.Pool`."""

    def __init__(self, handle: Any, keeper: Any) -> None:
        self._handle = handle
        self._http = handle.options(method_name="http", stream=True)
        self._keeper = keeper

    async def send(self, call: Call, ticket: Ticket) -> AsyncIterator[Head | BodyPart]:
        """See `Pool`."""
        answer = self._http.remote(call, ticket)
        try:
            async for part in answer:
                if isinstance(part, Head) and PASSED_ON in part.headers:
                    raise ReplicaLostError(f"{ticket.replica} cannot answer")
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
        # `results_async` gives up on all where one does not answer, so each is asked by itself.
        try:
            asked = self._handle.broadcast(method)._fetch_replica_results_async()
            results = await asyncio.wait_for(asked, _PATIENCE_S)
        except (RayError, RayServeException, TimeoutError):
            return []
        answers = (asyncio.wait_for(one.get_async(), _PATIENCE_S) for one in results)
        return await asyncio.gather(*answers, return_exceptions=True)

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
