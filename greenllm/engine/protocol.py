"""The engine protocol: what serving needs from an engine, native or not.

Contract: one thread owns an engine. `step` returns the tokens of one batch, `settle` the receipts
that are ready. A request with an adapter is added with a reference from `adapters.acquire`; the
engine releases it when it closes the request.

Not covered: threads and waiting (see `loop`), HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from greenllm.core import Request, Token
from greenllm.energy.account.account import Account
from greenllm.energy.account.totals import Totals
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.model.adapters import AdapterRegistry
from greenllm.model.info import ModelInfo
from greenllm.speculation.controller import Arm


@dataclass(frozen=True, slots=True)
class Stats:
    """The engine at one moment; `arms` is what `auto` has seen, see `Controller.state`."""

    num_waiting: int
    num_running: int
    num_blocks: int
    num_free_blocks: int
    num_preemptions: int
    num_steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    arms: Mapping[int, SequenceOf[Arm]]
    totals: Totals
    num_sensor_errors: int
    num_counter_faults: int
    num_violations: int


class Engine(Protocol):
    """What serving needs from an engine, native or not."""

    @property
    def info(self) -> ModelInfo:
        """The model it serves."""

    @property
    def account(self) -> Account:
        """The account that its joules are booked in."""

    @property
    def policy(self) -> CarbonPolicy:
        """How joules become grams."""

    @property
    def adapters(self) -> AdapterRegistry:
        """The adapters that requests may name; callable from any thread."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would run something."""

    def check(self, request: Request) -> None:
        """Refuse what cannot be served; callable from any thread.

        Raises:
            InvalidRequestError: with the parameter to blame.
        """

    def prepare(self, request: Request) -> None:
        """Do what its first step would wait for, once it passed `check`; from any thread.

        Raises:
            InvalidRequestError: only now it was found that it cannot be answered.
        """

    def add_request(self, request: Request) -> list[Token]:
        """Queue a request that passed `check`; its adapter is the engine's to release now.

        Returns its last tokens where it failed at once: no other request hears of that.
        """

    def abort(self, request_id: str) -> list[Token]:
        """End a request wherever it is."""

    def step(self) -> list[Token]:
        """Run one batch."""

    def settle(self) -> list[Receipt]:
        """Return receipts that are ready, closing a metering window when it is time."""

    def settle_in_s(self) -> float | None:
        """Seconds until `settle` is worth calling; None when nothing is due."""

    def drain(self, outcome: Outcome = "aborted") -> list[Receipt]:
        """End what is in flight, close the books and return the last receipts."""

    def if_lost(self) -> tuple[list[Receipt], Totals]:
        """What somebody else should book if this process died now: open requests as lost."""

    def stats(self) -> Stats:
        """Counters, for metrics."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much runs in one step, and whether common prompt beginnings are shared."""

    max_num_seqs: int = 64
    max_batch_tokens: int = 512
    prefix_cache: bool = True
