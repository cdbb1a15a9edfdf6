"""One run: the product's engine, scheduler and account, on a machine whose joules are known.

Contract: the engine is turned as its own loop turns it (see `greenllm.engine.loop`): between steps
it takes what has come in, then it settles; without work it sleeps until something is due. The
account has the meter, the clock and the engine's calls, and nothing of the machine.

Not covered: HTTP, the ledger, other programs on the machine.
"""

from __future__ import annotations

import math
import os
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from evals.studies.truth.arrivals import Arrival, Length, arrivals
from evals.studies.truth.costs import LAWS
from evals.studies.truth.machine import Machine
from evals.studies.truth.meters import SimulatedMeter, make_meter, random_glitches
from evals.studies.truth.processor import Processor, TrueBill
from evals.studies.truth.runner import SimulatedDrafter, SimulatedRunner
from greenllm.core import AdapterRef, Event, SamplingParams
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.receipt import Receipt
from greenllm.engine.loop import IDLE_TICK_S
from greenllm.engine.native import NativeEngine
from greenllm.engine.protocol import BatchLimits, Stats
from greenllm.model.adapters import AdapterRegistry
from greenllm.runner.warmup import warm_up
from greenllm.speculation.speculator import Speculator

_BLOCKS = 90
_HOST_S = 1e-4
_LEAST_WAIT_S = 1e-3
_PATIENCE_S = 60.0
_MAX_SEQUENCES = 24
_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Arm:
    """A meter on a machine that works by a law."""

    meter: str
    law: str

    def __str__(self) -> str:
        return f"{self.meter}/{self.law}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request: what it has really cost, and what its last receipt says."""

    length: Length
    truth: TrueBill
    receipt: Receipt | None


@dataclass(frozen=True, slots=True)
class Run:
    """All that ran; `residual` is the part of what the meter told that is nowhere in the books."""

    outcomes: tuple[Outcome, ...]
    residual: float
    num_violations: int
    stats: Stats


class _Adapters(AdapterRegistry):
    """Adapters that have no weights: there is nothing to give back."""

    def __init__(self) -> None:
        def refuse(folder: Path) -> NoReturn:
            raise NotImplementedError(folder)

        super().__init__(refuse, refuse, home=Path(os.devnull))

    def release(self, ref: AdapterRef) -> None:
        """Nothing was taken."""


class _Mute:
    """An answer that nobody reads."""

    stopped = False

    def __init__(self, params: SamplingParams) -> None:
        pass

    def push(self, token_id: int) -> tuple[Event, ...]:
        return ()

    def flush(self) -> tuple[Event, ...]:
        return ()


class Simulation:
    """A server from its start to its end; the same seed is the same load, whatever the meter."""

    def __init__(
        self,
        arm: Arm,
        seed: int,
        seconds: float,
        *,
        stamps: bool = True,
        num_glitches: int = 0,
        account: Callable[..., Account] = Account,
    ) -> None:
        self.machine = Machine()
        self.processor = Processor(self.machine, LAWS[arm.law], seed)
        source, now_s = random.Random(seed + 1), self.machine.now_s
        glitches = random_glitches(source, now_s + 10.0, now_s + seconds, num_glitches)
        self.meter: SimulatedMeter = make_meter(
            arm.meter, self.machine, source, stamps=stamps, glitches=glitches
        )
        self.engine = self._engine(account)
        self.processor.reseed(seed)
        self.receipts: dict[str, Receipt] = {}
        self._arrivals = arrivals(seed, seconds)
        self._events = self._plan(self.machine.now_s)
        self._ends_s = self.machine.now_s + seconds + _PATIENCE_S

    def _engine(self, make_account: Callable[..., Account]) -> NativeEngine:
        """Started as a server starts it: at rest, then a rehearsal."""
        runner, clock = SimulatedRunner(self.processor, _BLOCKS), self.machine.clock
        account = make_account(self.meter, runner.shape, clock=clock)
        account.rest(self.machine.rest)
        warm_up(runner, account, clock=clock)
        account.start_serving()
        return NativeEngine(
            runner,
            account,
            CarbonPolicy(None),
            text_stream=_Mute,
            clock=clock,
            limits=BatchLimits(max_num_seqs=_MAX_SEQUENCES, max_batch_tokens=_MAX_TOKENS),
            adapters=_Adapters(),
            speculator=Speculator({"draft_model": SimulatedDrafter(self.processor)}, clock=clock),
        )

    def _plan(self, start_s: float) -> deque[tuple[float, Callable[[], object]]]:
        """What clients do, in order."""
        found: list[tuple[float, Callable[[], object]]] = []
        for arrival in self._arrivals:
            found.append((start_s + arrival.at_s, self._adding(arrival)))
            if arrival.leaves_s is not None:
                found.append((start_s + arrival.leaves_s, self._leaving(arrival)))
        return deque(sorted(found, key=lambda event: event[0]))

    def _adding(self, arrival: Arrival) -> Callable[[], object]:
        return lambda: self.engine.add_request(arrival.request)

    def _leaving(self, arrival: Arrival) -> Callable[[], object]:
        return lambda: self.engine.abort(arrival.request.request_id)

    def run(self) -> Run:
        """Serve everything, and close the books."""
        while self._turn() and self.machine.now_s < self._ends_s:
            pass
        self._keep(self.engine.drain())
        return self._result()

    def _turn(self) -> bool:
        """As `EngineLoop` does it; False when nothing is left to do."""
        if not self.engine.has_work and not self._wait():
            return False
        while self._events and self._events[0][0] <= self.machine.now_s:
            self._events.popleft()[1]()
        if self.engine.has_work:
            self.machine.rest(_HOST_S)
            self.engine.step()
        self._keep(self.engine.settle())
        return True

    def _wait(self) -> bool:
        """Sleep until something is due; False when nothing ever will be."""
        due_s = self.engine.settle_in_s()
        if due_s is None and not self._events:
            return False
        wait_s = IDLE_TICK_S if due_s is None else max(due_s, _LEAST_WAIT_S)
        event_s = self._events[0][0] if self._events else math.inf
        self.machine.rest(min(wait_s, event_s - self.machine.now_s))
        return True

    def _keep(self, receipts: list[Receipt]) -> None:
        self.receipts.update((receipt.request_id, receipt) for receipt in receipts)

    def _result(self) -> Run:
        bills, ids = self.processor.bills, [a.request.request_id for a in self._arrivals]
        outcomes = tuple(
            Outcome(arrival.length, bills.get(name, TrueBill()), self.receipts.get(name))
            for name, arrival in zip(ids, self._arrivals, strict=True)
        )
        return Run(
            outcomes,
            residual=self._residual(),
            num_violations=self.engine.account.num_violations,
            stats=self.engine.stats(),
        )

    def _residual(self) -> float:
        """Added up here: what the meter told against every destination and every final receipt."""
        totals, told_j = self.engine.account.totals, self.meter.told_j
        finals = [one for one in self.receipts.values() if one.status == "final"]
        booked_j = totals.load_j + totals.idle_j + totals.unattributed_j + totals.train_j
        booked_j += totals.open_j + sum(one.total_j or 0.0 for one in finals)
        return abs(told_j - booked_j) / told_j
