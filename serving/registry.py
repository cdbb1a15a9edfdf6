"""The models of a server, by name: a request's model is looked up here, once.

A client asks for `base`, `adapter` or `base:adapter`; what a fine-tuning job made also answers to
the job's name. An unknown name is a 404, never a fall back to the base model.

Not covered: several base models in one process; `ServedModels` holds one, and is the seam.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from greenllm.core import AdapterRef
from greenllm.model.adapters import AdapterInfo, UnknownAdapterError
from greenllm.model.lora_config import AdapterError
from greenllm.served import Served
from serving.errors import ApiError
from serving.jobs.store import FINE_TUNED, adapter_folder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """The model and the adapter that a request asked for, under the name it `asked`."""

    served: Served
    adapter: str | None
    asked: str


class ServedModels:
    """Looks models up by any of their names, and gets adapters ready."""

    def __init__(self, served: Served) -> None:
        self.default = served

    def split(self, asked: str) -> Target:
        """Take a model's name apart; the adapter may not exist."""
        served = self.default
        if asked == served.name or asked in served.aliases:
            return Target(served, None, asked)
        if asked.startswith(FINE_TUNED):
            return Target(served, adapter_folder(asked), asked)
        base = next((name for name in served.names if asked.startswith(f"{name}:")), None)
        return Target(served, asked if base is None else asked[len(base) + 1 :], asked)

    async def resolve(self, asked: str) -> Target:
        """The model and the adapter behind a name.

        Raises:
            ApiError: there is no such model (404), or its adapter cannot be used (400).
        """
        target = self.split(asked)
        if target.adapter is not None:
            await asyncio.to_thread(self.adapter, target)
        return target

    def adapter(self, target: Target) -> AdapterInfo | None:
        """Facts about a target's adapter; None without one. Reads no weights."""
        name = target.adapter
        if name is None:
            return None
        return self._answered(target, lambda: target.served.engine.adapters.find(name))

    async def acquire(self, target: Target) -> AdapterRef | None:
        """The target's adapter in memory, for one request; None without one.

        It is given back at once when the caller has been cancelled meanwhile.
        """
        if target.adapter is None:
            return None
        acquiring = asyncio.create_task(asyncio.to_thread(self._acquire, target, target.adapter))
        try:
            return await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            acquiring.add_done_callback(lambda task: _give_back(target, task))
            raise

    def _acquire(self, target: Target, name: str) -> AdapterRef:
        return self._answered(target, lambda: target.served.engine.adapters.acquire(name))

    def _answered(self, target: Target, act: Callable[[], T]) -> T:
        """Do something with an adapter; what goes wrong becomes an answer."""
        try:
            return act()
        except UnknownAdapterError as error:
            raise self._no_such_model(target.asked) from error
        except AdapterError as error:
            raise ApiError(400, str(error), param="model", code="adapter_unusable") from error

    def _no_such_model(self, asked: str) -> ApiError:
        return ApiError(
            404,
            f"the model {asked!r} is not served here; it is {self.default.name!r}, and"
            " GET /v1/models lists its adapters",
            param="model",
            code="model_not_found",
        )


def _give_back(target: Target, acquiring: asyncio.Task[AdapterRef]) -> None:
    if not acquiring.cancelled() and acquiring.exception() is None:
        target.served.engine.adapters.release(acquiring.result())
