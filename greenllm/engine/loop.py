"""The engine thread: turns the crank while there is work, blocks while there is none.

Other threads talk to it through a queue of commands, carried out between steps; a `Listener` hears
of results on the engine thread. A receipt is recorded before it is published. While there is work,
totals are recorded every `record_every_s`, also without receipts, and with them what has to be
booked should this process be lost: the receipts that the open requests would get then.
An idle loop wakes every `IDLE_TICK_S` to follow counters that wrap, and for nothing else.

Not covered: several engines in one process sharing a device.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from greenllm.core import GreenllmError, Request, Token
from greenllm.energy.account.totals import Totals
from greenllm.energy.receipt import Receipt
from greenllm.engine.protocol import Engine

log = logging.getLogger(__name__)

IDLE_TICK_S = 30.0
RECORD_EVERY_S = 1.0


class EngineStuckError(GreenllmError):
    """The engine's thread does not come back from a step."""


class Listener(Protocol):
    """Hears from the engine thread; its methods must return soon and must not raise."""

    def stamp(self, receipt: Receipt) -> Receipt:
        """Add to a receipt what only the listener knows, before it is written."""

    def publish(self, tokens: Sequence[Token], receipts: Sequence[Receipt]) -> None:
        """Take the tokens of a step, and receipts that have been recorded."""

    def failed(self) -> None:
        """The engine has stopped for good; nothing more will come."""


class Recorder(Protocol):
    """The part of a ledger that the loop writes; see `energy.ledger.Ledger`."""

    def record(
        self,
        session_id: str,
        receipts: Sequence[Receipt],
        totals: Totals | None = None,
        *,
        closed: bool = False,
        if_lost: Sequence[Receipt] | None = None,
    ) -> None:
        """Write receipts and the session's totals; must not raise or wait for a disk or a peer."""


class EngineLoop:
    """Owns the engine thread. `submit`, `abort` and `record` may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        ledger: Recorder,
        session_id: str,
        listener: Listener,
        *,
        record_every_s: float = RECORD_EVERY_S,
    ) -> None:
        self.error: BaseException | None = None
        self._engine = engine
        self._ledger = ledger
        self._session_id = session_id
        self._listener = listener
        self._record_every_s = record_every_s
        self._noted_s = 0.0
        # Not SimpleQueue: in CPython 3.11 its `get` may wait for ever once a short timeout has
        # passed while it looked, and receipts that are due would wait with it.
        self._commands: queue.Queue[Callable[[], None]] = queue.Queue()
        self._stopping = False
        self._num_turns = 0
        self._is_waiting = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the engine still turns."""
        return self._thread.is_alive() and self.error is None

    @property
    def turn(self) -> int | None:
        """The number of the turn that it is in; None while there is nothing to do."""
        return None if self._is_waiting else self._num_turns

    def give_up(self, reason: str) -> None:
        """Take the engine for stopped, as its thread does not come back."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        where = "".join(traceback.format_stack(frame)) if frame is not None else ""
        log.critical("the engine is given up: %s\n%s", reason, where)
        self.error = EngineStuckError(reason)
        self._listener.failed()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request that passed the engine's `check`."""
        self._commands.put(lambda: self._add(request))

    def _add(self, request: Request) -> None:
        if failed := self._engine.add_request(request):
            self._listener.publish(failed, ())

    def abort(self, request_id: str) -> None:
        """End a request between two steps."""
        self._commands.put(lambda: self._listener.publish(self._engine.abort(request_id), ()))

    def record(self, receipt: Receipt) -> None:
        """Write a receipt for a request that never reached the engine, which may have stopped."""
        if self.error is None:
            self._commands.put(lambda: self._record([receipt]))
        else:
            self._ledger.record(self._session_id, [receipt])

    def stop(self, timeout_s: float = 30.0) -> None:
        """Finish the step, close the books and end the thread; one that is given up stays."""
        self._commands.put(self._stop)
        if not isinstance(self.error, EngineStuckError):
            self._thread.join(timeout_s)

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        try:
            self._record([])
            while not self._stopping:
                self._turn()
            self._finish()
        except BaseException as error:
            self.error = error
            log.critical("the engine stopped", exc_info=True)
            self._save_what_can_be_saved()
            self._listener.failed()

    def _turn(self) -> None:
        """Carry out commands, run a step, settle receipts; block when there is nothing to do."""
        self._num_turns += 1
        self._obey()
        tokens = self._engine.step() if self._engine.has_work else []
        receipts = self._stamped(self._engine.settle())
        is_due = time.monotonic() - self._noted_s >= self._record_every_s
        # What was noted of a request that is given up must not become its receipt.
        is_given_up = any(receipt.status == "provisional" for receipt in receipts)
        if is_given_up or (is_due and self._engine.has_work):
            self._note(receipts)
        elif receipts:
            self._record(receipts)
        if tokens or receipts:
            self._listener.publish(tokens, receipts)

    def _obey(self) -> None:
        """Run waiting commands; when there is no other work, wait for one."""
        if not self._engine.has_work:
            due_s = self._engine.settle_in_s()
            try:
                self._is_waiting = True
                command = self._commands.get(timeout=IDLE_TICK_S if due_s is None else due_s)
            except queue.Empty:
                self._is_waiting = False
                if due_s is None:
                    self._note([])
                return
            self._is_waiting = False
            command()
        while not self._commands.empty():
            self._commands.get()()

    def _stamped(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        return [self._listener.stamp(receipt) for receipt in receipts]

    def _record(self, receipts: Sequence[Receipt]) -> None:
        self._ledger.record(self._session_id, receipts, self._engine.account.published)

    def _note(self, receipts: Sequence[Receipt]) -> None:
        """Record, and say what to book should this process be lost from now on."""
        self._noted_s = time.monotonic()
        lost, _ = self._engine.if_lost()
        totals = self._engine.account.published
        self._ledger.record(self._session_id, receipts, totals, if_lost=lost)

    def _save_what_can_be_saved(self) -> None:
        """Give every request of a dying engine its row, also those that it has not taken yet."""
        self._carry_out_what_waits()
        try:
            receipts = self._stamped(self._engine.drain("failed"))
            self._ledger.record(self._session_id, receipts, self._engine.account.published)
        except Exception:
            # The engine is already broken; what it cannot tell any more is lost, and logged.
            log.critical("requests in flight leave no receipts", exc_info=True)

    def _carry_out_what_waits(self) -> None:
        while not self._commands.empty():
            try:
                self._commands.get()()
            except Exception:
                log.critical("a command failed after the engine had stopped", exc_info=True)

    def _finish(self) -> None:
        receipts = self._stamped(self._engine.drain())
        totals = self._engine.account.published
        self._ledger.record(self._session_id, receipts, totals, closed=True)
        self._listener.publish((), receipts)
