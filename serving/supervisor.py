"""Sees to it that a server that cannot serve any more ends, and that one without memory says no.

Contract: once the engine's thread has died, or has been in one turn for `step_timeout_s`, every
open request gets an error, and whoever owns the process is told, to end it: what runs servers
starts another one. While less memory is free than `min_free_bytes`, new requests are refused. Turns
are timed in looks, one a second, so that a process that was stopped for an hour is not taken for
stuck.

Not covered: steps that are slow, not stuck; memory that is asked for faster than it is looked at.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from greenllm.engine.loop import EngineLoop
from serving.memory import free_bytes

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class Supervisor:
    """See the module; `on_failed` hears once, with the reason."""

    def __init__(
        self,
        loop: EngineLoop,
        on_failed: Callable[[str], None],
        *,
        step_timeout_s: float,
        min_free_bytes: float,
        free: Callable[[], int | None] = free_bytes,
    ) -> None:
        self.is_short_of_memory = False
        self._loop = loop
        self._on_failed = on_failed
        self._most_looks = step_timeout_s / LOOK_EVERY_S
        self._min_free_bytes = min_free_bytes
        self._free = free
        self._turn: int | None = None
        self._num_looks = 0

    async def run(self) -> None:
        """Look once a second, until the engine has failed."""
        while self.look():
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> bool:
        """Look once; whether it is worth looking again."""
        self._look_at_memory()
        self._look_at_turn()
        if self._loop.error is None:
            return True
        self._on_failed(str(self._loop.error) or type(self._loop.error).__name__)
        return False

    def _look_at_turn(self) -> None:
        turn = self._loop.turn
        self._num_looks = self._num_looks + 1 if turn is not None and turn == self._turn else 0
        self._turn = turn
        if 0 < self._most_looks <= self._num_looks:
            self._loop.give_up(f"a step has not ended for {self._num_looks * LOOK_EVERY_S:g} s")

    def _look_at_memory(self) -> None:
        free = self._free() if self._min_free_bytes else None
        is_short = free is not None and free < self._min_free_bytes
        if is_short != self.is_short_of_memory:
            self.is_short_of_memory = is_short
            now = "new requests are refused" if is_short else "requests are taken again"
            log.warning("%d MB of memory are free: %s", (free or 0) // 1_000_000, now)
