"""The models of a server, by name: a request's model is looked up here, once.

A client asks for `base`, `adapter` or `base:adapter`; what a fine-tuning job made also answers to
the job's name. An unknown name is a 404, never a fall back to the base model, and so is the name of
an adapter that the caller may not see.

Not covered: several base models in one process; `ServedModels` holds one, and is the seam.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from greenllm.core import AdapterRef
from greenllm.model.adapters import AdapterInfo, UnknownAdapterError
from greenllm.model.lora_config import AdapterError
from greenllm.served import Served
from serving.errors import ApiError
from serving.jobs.store import FINE_TUNED, adapter_folder
from serving.keys.caller import Caller

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """The model and the adapter that a caller asked for, under the name it `asked`."""

    served: Served
    adapter: str | None
    asked: str
    caller: Caller


class ServedModels:
    """Looks models up by any of their names, and gets adapters ready."""

    def __init__(self, served: Served) -> None:
        self.default = served

    def split(self, asked: str, caller: Caller) -> Target:
        """Take a model's name apart; the adapter may not exist."""
        served = self.default
        if asked == served.name or asked in served.aliases:
            return Target(served, None, asked, caller)
        if asked.startswith(FINE_TUNED):
            return Target(served, adapter_folder(asked), asked, caller)
        base = next((name for name in served.names if asked.startswith(f"{name}:")), None)
        adapter = asked if base is None else asked[len(base) + 1 :]
        return Target(served, adapter, asked, caller)

    async def resolve(self, asked: str, caller: Caller) -> Target:
        """The model and the adapter behind a name.

        Raises:
            ApiError: there is no such model (404), or its adapter cannot be used (400).
        """
        target = self.split(asked, caller)
        if target.adapter is not None:
            await asyncio.to_thread(self.adapter, target)
        return target

    def adapter(self, target: Target) -> AdapterInfo | None:
        """Facts about a target's adapter; None without one. Reads no weights."""
        name = target.adapter
        if name is None:
            return None
        info = self._answered(target, lambda: target.served.engine.adapters.find(name))
        if not target.caller.may_see(info.owner):
            raise self._no_such_model(target.asked)
        return info

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
        ref = self._answered(target, lambda: target.served.engine.adapters.acquire(name))
        if not target.caller.may_see(ref.owner):  # another took the name since it was looked up
            target.served.engine.adapters.release(ref)
            raise self._no_such_model(target.asked)
        return ref

    def _answered(self, target: Target, act: Callable[[], T]) -> T:
        """Do something with an adapter; what goes wrong becomes an answer."""
        try:
            return act()
        except UnknownAdapterError as error:
            raise self._no_such_model(target.asked) from error
        except AdapterError as error:
            raise _unusable(target, error) from error

    def _no_such_model(self, asked: str) -> ApiError:
        return ApiError(
            404,
            f"the model {asked!r} is not served here; it is {self.default.name!r}, and"
            " GET /v1/models lists its adapters",
            param="model",
            code="model_not_found",
        )


def _unusable(target: Target, error: AdapterError) -> ApiError:
    """The reason names folders of the server, which are for its administrators."""
    message = str(error)
    if not target.caller.is_admin:
        log.warning("model %r: %s", target.asked, error)
        message = f"the adapter of {target.asked!r} cannot be used; the server's log says why"
    return ApiError(400, message, param="model", code="adapter_unusable")


def _give_back(target: Target, acquiring: asyncio.Task[AdapterRef]) -> None:
    if not acquiring.cancelled() and acquiring.exception() is None:
        target.served.engine.adapters.release(acquiring.result())
