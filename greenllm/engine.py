"""The engine protocol, and the native engine that turns the crank.

    schedule -> run -> charge -> commit

Contract: one thread owns an engine. `step` returns the tokens of one batch, `settle` the receipts
that are ready. A runner that fails ends the requests of its batch with reason `error`; their energy
stays on their bill and the engine goes on.

Not covered: threads and waiting (see `engine_loop`), HTTP, adapters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from greenllm.blocks import BlockManager
from greenllm.core import (
    Batch,
    InvalidRequestError,
    Outcome,
    Receipt,
    Request,
    SamplingParams,
    Sequence,
    TextSink,
    Token,
    sequences_of,
)
from greenllm.energy.account import Account, Totals
from greenllm.energy.policy import CarbonPolicy
from greenllm.model.info import ModelInfo
from greenllm.runner.base import Runner
from greenllm.scheduler import Scheduler

log = logging.getLogger(__name__)

MAX_SEQUENCES = 1024


@dataclass(frozen=True, slots=True)
class Stats:
    """The engine at one moment."""

    num_waiting: int
    num_running: int
    num_blocks: int
    num_free_blocks: int
    num_preemptions: int
    num_steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    totals: Totals
    num_sensor_errors: int
    num_violations: int


class Engine(Protocol):
    """What serving needs from an engine, native or not."""

    @property
    def info(self) -> ModelInfo:
        """The model it serves."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would run something."""

    def check(self, request: Request) -> None:
        """Refuse what cannot be served; callable from any thread.

        Raises:
            InvalidRequestError: with the parameter to blame.
        """

    def add_request(self, request: Request) -> None:
        """Queue a request that passed `check`."""

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

    def stats(self) -> Stats:
        """Counters, for metrics."""


@dataclass(slots=True)
class _Open:
    """A request in flight."""

    request: Request
    sequences: list[Sequence] = field(default_factory=list)


class NativeEngine:
    """Scheduler, runner and account, composed; none of them knows another."""

    def __init__(
        self,
        runner: Runner,
        account: Account,
        policy: CarbonPolicy,
        *,
        text_stream: Callable[[SamplingParams], TextSink],
        clock: Callable[[], float],
        max_num_seqs: int = 64,
        max_batch_tokens: int = 512,
        prefix_cache: bool = True,
    ) -> None:
        self.runner = runner
        self.account = account
        self.policy = policy
        blocks = BlockManager(runner.num_blocks, runner.block_size, prefix_cache=prefix_cache)
        self.scheduler = Scheduler(
            blocks, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens, clock=clock
        )
        self._text_stream = text_stream
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._num_steps = 0
        self._tokens = {"prompt": 0, "cached": 0, "completion": 0}

    @property
    def info(self) -> ModelInfo:
        """The model it serves."""
        return self.runner.info

    @property
    def has_work(self) -> bool:
        """Whether `step` would run something."""
        return self.scheduler.has_work

    def check(self, request: Request) -> None:
        """Refuse empty prompts, unknown ids and what exceeds the context; see `Engine`."""
        if request.num_sequences > MAX_SEQUENCES:
            raise InvalidRequestError(
                f"{request.num_sequences} choices asked for, at most {MAX_SEQUENCES}",
                "prompt" if len(request.prompts) > 1 else "n",
            )
        if not request.prompts:
            raise InvalidRequestError("there is no prompt", "prompt")
        for prompt in request.prompts:
            self._check_prompt(prompt, request.sampling.max_tokens)
        sampling, vocabulary = request.sampling, self.info.vocab_size
        for name, ids in (
            ("logit_bias", sampling.logit_bias),
            ("stop_token_ids", sampling.stop_token_ids),
        ):
            if not all(0 <= token_id < vocabulary for token_id in ids):
                raise InvalidRequestError(f"token ids must be in [0, {vocabulary})", name)
        ends = self.info.eos_token_ids | frozenset(sampling.stop_token_ids)
        if sampling.min_tokens and len(ends) >= vocabulary:
            raise InvalidRequestError("every token would end the answer", "stop_token_ids")

    def _check_prompt(self, prompt: tuple[int, ...], max_tokens: int) -> None:
        limit, vocabulary = self.info.context_length, self.info.vocab_size
        if not prompt:
            raise InvalidRequestError("the prompt is empty", "prompt")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise InvalidRequestError(f"token ids must be in [0, {vocabulary})", "prompt")
        if len(prompt) + min(1, max_tokens) > limit:
            raise InvalidRequestError(
                f"the prompt has {len(prompt)} tokens, the context is {limit}", "prompt"
            )
        if len(prompt) + max_tokens > limit:
            raise InvalidRequestError(
                f"prompt ({len(prompt)}) and max_tokens ({max_tokens}) exceed the context of"
                f" {limit} tokens",
                "max_tokens",
            )

    def add_request(self, request: Request) -> None:
        """Open a bill and queue the request's sequences."""
        self.account.open(request)
        entry = _Open(
            request,
            sequences_of(
                request,
                eos_token_ids=self.info.eos_token_ids,
                max_len=self.info.context_length,
            ),
        )
        self._open[request.request_id] = entry
        for seq in entry.sequences:
            seq.text = self._text_stream(request.sampling)
            self.scheduler.add(seq)

    def step(self) -> list[Token]:
        """Run one batch: schedule, compute, account, commit."""
        started_s = self._clock()
        batch = self.scheduler.schedule()
        try:
            samples = self.runner.run(batch)
        except Exception as error:
            # A failing kernel or a full device must not take the other requests down.
            log.exception("step failed")
            return self._fail(batch, error, self._clock() - started_s)
        self._num_steps += 1
        self.account.charge(batch, self._clock() - started_s)
        tokens = self.scheduler.commit(batch, samples)
        self._close_finished({token.request_id for token in tokens if token.finish_reason})
        return tokens

    def _fail(self, batch: Batch, error: Exception, duration_s: float) -> list[Token]:
        self.account.charge(batch, duration_s)
        tokens: list[Token] = []
        for request_id in {chunk.seq.request.request_id for chunk in batch.chunks}:
            ended = self.scheduler.abort(request_id, "error")
            tokens += [replace(token, text=f"{type(error).__name__}: {error}") for token in ended]
            self._close(request_id, "failed")
        return tokens

    def abort(self, request_id: str) -> list[Token]:
        """End a request wherever it is; unknown ids are ignored, they have just finished."""
        if request_id not in self._open:
            return []
        tokens = self.scheduler.abort(request_id)
        self._close(request_id, "aborted")
        return tokens

    def _close_finished(self, request_ids: set[str]) -> None:
        for request_id in request_ids:
            if all(seq.is_finished for seq in self._open[request_id].sequences):
                self._close(request_id, "completed")

    def _close(self, request_id: str, outcome: Outcome) -> None:
        entry = self._open.pop(request_id)
        leaders = [seq for seq in entry.sequences if seq.leader is None]
        cached = sum(seq.num_cached or 0 for seq in leaders)
        generated = sum(seq.num_generated for seq in entry.sequences)
        self._tokens["prompt"] += entry.request.prompt_tokens
        self._tokens["cached"] += cached
        self._tokens["completion"] += generated
        self.account.finish(request_id, outcome, cached=cached, generated=generated)

    def settle(self) -> list[Receipt]:
        """Receipts that are ready, with their grams."""
        return [self.policy.apply(receipt) for receipt in self.account.settle()]

    def settle_in_s(self) -> float | None:
        """Seconds until `settle` is worth calling."""
        return self.account.settle_in_s()

    def drain(self, outcome: Outcome = "aborted") -> list[Receipt]:
        """End what is in flight, close the books and return the last receipts."""
        for request_id in list(self._open):
            self.scheduler.abort(request_id)
            self._close(request_id, outcome)
        return [self.policy.apply(receipt) for receipt in self.account.drain()]

    def stats(self) -> Stats:
        """Counters, for metrics."""
        scheduler = self.scheduler
        return Stats(
            num_waiting=len(scheduler.waiting),
            num_running=len(scheduler.running),
            num_blocks=scheduler.blocks.num_blocks,
            num_free_blocks=scheduler.blocks.num_free,
            num_preemptions=scheduler.num_preemptions,
            num_steps=self._num_steps,
            prompt_tokens=self._tokens["prompt"],
            cached_tokens=self._tokens["cached"],
            completion_tokens=self._tokens["completion"],
            totals=self.account.published,
            num_sensor_errors=self.account.num_sensor_errors,
            num_violations=self.account.num_violations,
        )
