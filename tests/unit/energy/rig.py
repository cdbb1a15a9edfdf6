"""An account on a meter and a clock that tests move by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenllm.core import Batch, Chunk, Request, SamplingParams, Sequence
from greenllm.energy.account.account import Account
from greenllm.energy.account.bill import TokenCounts
from greenllm.energy.account.totals import Totals
from greenllm.energy.meters.protocol import Reading, SensorError
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.shape import ModelShape

SHAPE = ModelShape(1000, 300, 2, 16, 64)
Part = tuple[str, int, int]


class HandMeter:
    """Counters set by the test; it is the clock too."""

    method = "measured:hand"
    measured = True
    uncertainty = 0.05
    lag_s = 0.0

    def __init__(self, *, period_s: float, idle_w: Mapping[str, float] | None) -> None:
        self.period_s = period_s
        self.idle_w = idle_w
        self.now_s = 1000.0
        self.joules: dict[str, float] = {}
        self.own_cpu_s: float | None = None
        self.machine_cpu_s: float | None = None
        self.train_cpu_s = 0.0
        self.failing = False
        self.gaps: frozenset[str] = frozenset()
        self.held: frozenset[str] = frozenset()
        self.num_faults: Mapping[str, int] = {}
        self.lost: Mapping[str, str] = {}
        self.paused_s = 0.0
        self.ticked_s: float | None = None
        self._ticked: dict[str, float] = {}

    def tick(self) -> None:
        """From now on counters show what they have at ticks only."""
        self.ticked_s, self._ticked = self.now_s, dict(self.joules)

    def read(self) -> Reading:
        if self.failing:
            raise SensorError("hand: failing")
        shown = self.joules if self.ticked_s is None else self._ticked
        joules = {domain: value for domain, value in shown.items() if domain not in self.lost}
        return Reading(
            self.now_s,
            joules,
            self.own_cpu_s,
            self.machine_cpu_s,
            self.train_cpu_s,
            as_of_s={} if self.ticked_s is None else dict.fromkeys(joules, self.ticked_s),
            gaps=self.gaps,
            held=self.held,
            num_faults=self.num_faults,
            lost=self.lost,
            paused_s=self.paused_s,
        )

    def clock(self) -> float:
        return self.now_s


class Rig:
    """Drives an account through steps; keeps every receipt it gave."""

    def __init__(
        self,
        *,
        idle_w: Mapping[str, float] | None = None,
        period_s: float = 0.0,
        receipt_wait_s: float = 0.15,
        serving: bool = True,
        needs: tuple[str, ...] = (),
        domains: tuple[str, ...] = ("cpu",),
    ) -> None:
        self.meter = HandMeter(period_s=period_s, idle_w={} if idle_w is None else idle_w)
        self.meter.joules = dict.fromkeys(domains, 50.0)
        self.account = Account(
            self.meter, SHAPE, clock=self.meter.clock, receipt_wait_s=receipt_wait_s, needs=needs
        )
        if serving:
            self.account.start_serving()
        self.receipts: dict[str, Receipt] = {}
        self.finals: dict[str, Receipt] = {}
        self._sequences: dict[str, Sequence] = {}

    @property
    def totals(self) -> Totals:
        return self.account.totals

    def spend(
        self,
        seconds: float,
        *,
        own_s: float = 0.0,
        others_s: float = 0.0,
        train_s: float = 0.0,
        **joules: float,
    ) -> None:
        """Let time pass and the counters move; CPU times are told once they were set."""
        self.meter.now_s += seconds
        for domain, value in joules.items():
            self.meter.joules[domain] = self.meter.joules.get(domain, 0.0) + value
        if self.meter.own_cpu_s is not None and self.meter.machine_cpu_s is not None:
            self.meter.own_cpu_s += own_s
            self.meter.train_cpu_s += train_s
            self.meter.machine_cpu_s += own_s + others_s + train_s

    def tick(self) -> None:
        """Let the counters show what they have now, and nothing later until the next tick."""
        self.meter.tick()

    def open(self, *names: str, prompt: int = 4, **fields: Any) -> None:
        for name in names:
            request = Request(
                name,
                ((1,) * prompt,),
                fields.pop("sampling", SamplingParams()),
                fields.pop("model", "m"),
                created_s=5.0,
                **fields,
            )
            self._sequences[name] = Sequence(
                request=request,
                index=0,
                token_ids=[1] * 4096,
                prompt_len=prompt,
                seed=0,
                eos_token_ids=frozenset(),
                max_len=4096,
            )
            self.account.open(request)

    def batch(self, *parts: Part, samples: bool = True) -> Batch:
        """Chunks of (request, first token, number of tokens)."""
        return Batch(
            tuple(Chunk(self._sequences[name], at, num, samples) for name, at, num in parts)
        )

    def step(self, *parts: Part, seconds: float = 0.1, **spent: float) -> None:
        """Run one step and let the account look at it, as the engine does."""
        self.spend(seconds, **spent)
        self.account.charge(self.batch(*parts), seconds)
        self.settle()

    def finish(self, *names: str, outcome: Outcome = "completed") -> None:
        for name in names:
            self.account.finish(name, outcome, TokenCounts(cached=1, generated=2))

    def settle(self) -> list[Receipt]:
        return self._keep(self.account.settle())

    def drain(self) -> list[Receipt]:
        return self._keep(self.account.drain())

    def _keep(self, receipts: list[Receipt]) -> list[Receipt]:
        for receipt in receipts:
            assert receipt.request_id not in self.finals, "a final receipt is the last word"
            self.receipts[receipt.request_id] = receipt
            if receipt.status != "provisional":
                self.finals[receipt.request_id] = receipt
        return receipts


def make_rig(**how: Any) -> Any:
    """A `Rig`; loosely typed, because each joule of a receipt may be None."""
    return Rig(**how)


def make_receipt(request_id: str = "r", **fields: Any) -> Receipt:
    """A receipt with a few joules."""
    known: dict[str, Any] = {
        "model": "m",
        "outcome": "completed",
        "created_s": 100.0,
        "status": "final",
        "method": "measured:x",
        "measured": True,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "active_j": 2.0,
        "idle_j": 1.0,
    }
    return Receipt(request_id, **{**known, **fields})
