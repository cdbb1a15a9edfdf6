"""The native engine: it turns the crank.

    schedule -> draft -> run -> charge -> commit

Contract: see `protocol.Engine`. A runner that fails ends the requests of its batch with reason
`error`. What fails in the work of one request, from queue to text, ends that request alone (see
`fence`). Their energy stays on their bill and the engine goes on.

Not covered: threads and waiting (see `loop`), HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import partial

from greenllm.core import AnswerSink, Batch, Request, SamplingParams, Sequence, Speculation, Token
from greenllm.energy.account.account import Account
from greenllm.energy.account.totals import Totals
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.engine.admission import check_approximation, check_request, refuse_grammar
from greenllm.engine.blocks import BlockManager
from greenllm.engine.in_flight import InFlight
from greenllm.engine.protocol import BatchLimits, Stats
from greenllm.engine.scheduler import Scheduler
from greenllm.fence import fenced
from greenllm.model.adapters import AdapterRegistry, no_adapters
from greenllm.model.info import ModelInfo
from greenllm.runner.base import Runner
from greenllm.speculation.speculator import Speculator

log = logging.getLogger(__name__)


class NativeEngine:
    """Scheduler, runner and account, composed; none of them knows another."""

    def __init__(
        self,
        runner: Runner,
        account: Account,
        policy: CarbonPolicy,
        *,
        text_stream: Callable[[SamplingParams], AnswerSink],
        clock: Callable[[], float],
        limits: BatchLimits | None = None,
        adapters: AdapterRegistry | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        self.runner = runner
        self.account = account
        self.policy = policy
        limits = limits or BatchLimits()
        blocks = BlockManager(
            runner.num_blocks, runner.block_size, prefix_cache=limits.prefix_cache
        )
        self._speculator = speculator or Speculator({})
        self.scheduler = Scheduler(
            blocks,
            max_num_seqs=limits.max_num_seqs,
            max_batch_tokens=limits.max_batch_tokens,
            clock=clock,
            num_drafts=self._num_drafts,
        )
        self.adapters = no_adapters() if adapters is None else adapters
        self.adapters.prepare_with(lambda ref, folder: runner.prepare_adapter(ref.digest))
        runner.use_adapters(self.adapters)
        self._clock = clock
        self._in_flight = InFlight(account, policy, text_stream, self.adapters.release)
        self._num_steps = 0

    @property
    def info(self) -> ModelInfo:
        """The model it serves."""
        return self.runner.info

    @property
    def has_work(self) -> bool:
        """Whether `step` would run something."""
        return self.scheduler.has_work

    def check(self, request: Request) -> None:
        """Refuse what the model cannot answer; see `Engine`."""
        check_request(request, self.info)
        check_approximation(request)
        refuse_grammar(request)
        if request.speculation is not None:
            self._speculator.check(request)

    def prepare(self, request: Request) -> None:
        """Do what its first step would wait for; see `Engine`."""
        if request.approximation is not None:
            self.runner.prepare_exit(request.approximation.exit_layer)
        else:
            self._prepare(request.speculation or self._speculator.default)

    def _prepare(self, speculation: Speculation) -> None:
        for num_tokens in self._speculator.prepare(speculation):
            self.runner.prepare_check(num_tokens)

    def prepare_default(self) -> None:
        """Do what requests that name no way of drafting would wait for."""
        self._prepare(self._speculator.default)

    def add_request(self, request: Request) -> list[Token]:
        """Open a bill and queue the request's sequences."""
        sequences = self._in_flight.open(request, self.info)
        return fenced(partial(self._queue, sequences), partial(self._give_up, request.request_id))

    def _queue(self, sequences: SequenceOf[Sequence]) -> list[Token]:
        for seq in sequences:
            self._in_flight.read(seq)
            self.scheduler.add(seq)
        return []

    def _give_up(self, request_id: str, error: str) -> list[Token]:
        """End a request that could not be queued as a whole."""
        tokens = self.scheduler.abort(request_id, "error", error)
        tokens += self._in_flight.end(request_id, "error", error)
        self._close_finished(tokens)
        return tokens

    @property
    def _speculates(self) -> bool:
        """Whether a request in flight may get draft tokens; if none may, nobody is asked."""
        return self._speculator.default.method != "off" or self._in_flight.num_speculating > 0

    def _num_drafts(self, seq: Sequence) -> int:
        is_asked = seq.exit is not None or self._speculates
        return self._speculator.num_drafts(seq) if is_asked else 0

    def step(self) -> list[Token]:
        """Run one batch: schedule, draft, compute, account, commit."""
        started_s = self._clock()
        if speculates := self._speculates:
            self._speculator.begin(len(self.scheduler.running))
        batch = self.scheduler.schedule()
        tokens = self.scheduler.take_failed()
        if batch.chunks:
            tokens += self._run(batch, started_s, speculates=speculates)
        self._close_finished(tokens)
        return tokens

    def _run(self, batch: Batch, began_s: float, *, speculates: bool) -> list[Token]:
        started_s = began_s
        try:
            if batch.copies:
                self.runner.copy_blocks(batch.copies)
            if speculates:
                batch, started_s = self._with_drafts(batch, started_s)
            samples = self.runner.run(batch)
        except Exception as error:
            # A failing kernel or a full device must not take the other requests down.
            log.exception("step failed")
            return self._fail(batch, error, self._clock() - started_s)
        self._num_steps += 1
        self.account.charge(batch, self._clock() - started_s, samples)
        tokens = self.scheduler.commit(batch, samples)
        if speculates:
            took_s = self._clock() - began_s
            # What is learnt is an extra, as draft tokens are: nobody's answer hangs on it.
            fenced(partial(self._speculator.learn, batch, samples, took_s), str)
        return tokens

    def _with_drafts(self, batch: Batch, started_s: float) -> tuple[Batch, float]:
        """The batch with draft tokens, and when the step proper begins."""
        batch, done = self._speculator.draft(batch)
        for drafted in done:
            if drafted.shape is not None:
                self.account.charge_draft(
                    drafted.chunks, drafted.passes, drafted.shape, drafted.duration_s
                )
                started_s += drafted.duration_s
        return batch, started_s

    def _fail(self, batch: Batch, error: Exception, duration_s: float) -> list[Token]:
        self.account.charge(batch, duration_s)
        tokens: list[Token] = []
        for request_id in {chunk.seq.request.request_id for chunk in batch.chunks}:
            tokens += self.scheduler.abort(request_id, "error", f"{type(error).__name__}: {error}")
        return tokens

    def abort(self, request_id: str) -> list[Token]:
        """End a request wherever it is; unknown ids are ignored, they have just finished."""
        if request_id not in self._in_flight:
            return []
        tokens = self.scheduler.abort(request_id)
        self._close(request_id, "aborted")
        return tokens

    def _close_finished(self, tokens: SequenceOf[Token]) -> None:
        """Close the requests without a sequence left."""
        ends = {token.request_id: token for token in tokens if token.finish_reason}
        for request_id, last in ends.items():
            reasons = {seq.finish_reason for seq in self._in_flight.sequences(request_id)}
            if "error" in reasons:
                log.error("request %s failed: %s", request_id, last.error)
                self._close(request_id, "failed")
            elif None not in reasons:
                self._close(request_id, "completed")

    def _close(self, request_id: str, outcome: Outcome) -> None:
        self._in_flight.close(request_id, outcome, self.runner.shape.num_layers)

    def settle(self) -> list[Receipt]:
        """Receipts that are ready, with their grams."""
        return self._in_flight.settle()

    def settle_in_s(self) -> float | None:
        """Seconds until `settle` is worth calling."""
        return self.account.settle_in_s()

    def drain(self, outcome: Outcome = "aborted") -> list[Receipt]:
        """End what is in flight, close the books and return the last receipts."""
        for request_id in self._in_flight.ids():
            self.scheduler.abort(request_id)
            self._close(request_id, outcome)
        return self._in_flight.drain()

    def if_lost(self) -> tuple[list[Receipt], Totals]:
        """What to book if this process died now; see `Engine`."""
        return self._in_flight.if_lost()

    def stats(self) -> Stats:
        """Counters, for metrics."""
        scheduler, counts = self.scheduler, self._in_flight.counts
        return Stats(
            num_waiting=len(scheduler.waiting),
            num_running=len(scheduler.running),
            num_blocks=scheduler.blocks.num_blocks,
            num_free_blocks=scheduler.blocks.num_free,
            num_preemptions=scheduler.num_preemptions,
            num_steps=self._num_steps,
            prompt_tokens=counts.prompt,
            cached_tokens=counts.cached,
            completion_tokens=counts.generated,
            drafted_tokens=counts.drafted,
            accepted_tokens=counts.accepted,
            arms=self._speculator.arms(),
            totals=self.account.published,
            num_sensor_errors=self.account.num_sensor_errors,
            num_counter_faults=self.account.num_counter_faults,
            num_violations=self.account.num_violations,
        )
