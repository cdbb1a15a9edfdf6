"""The engine protocol on vLLM: its step, greenllm's bills.

    vLLM schedules and runs -> charge what it scheduled -> take its tokens

Contract: see `engine.protocol.Engine`. vLLM runs in this process, and whoever talks to it holds its
lock. Work is charged by what its scheduler decided, token for token. Answers end by greenllm's
rules; what greenllm ends first is aborted in vLLM before its next step. An exception out of vLLM's
step leaves it unusable: it is passed on and ends this engine.

Not covered: pipelines of devices, asynchronous scheduling, sleeping.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenllm.core import (
    AdapterRef,
    AnswerSink,
    Batch,
    Chunk,
    DraftPass,
    FinishReason,
    Request,
    Sample,
    SamplingParams,
    Sequence,
    Speculation,
    Token,
    TokenLogprob,
)
from greenllm.energy.account.account import Account
from greenllm.energy.account.totals import Totals
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.engine.admission import check_request
from greenllm.engine.in_flight import InFlight
from greenllm.engine.protocol import Stats
from greenllm.engine.scheduler import append_all
from greenllm.model.adapters import AdapterRegistry
from greenllm.model.info import ModelInfo
from greenllm.shape import ModelShape
from greenllm.vllm.protocol import Backend
from greenllm.vllm.schedule import Journal, Scheduled
from greenllm.vllm.translate import logprobs_of, refuse, sampling_values


@dataclass(frozen=True, slots=True)
class Facts:
    """What the engine knows of the model that vLLM has loaded."""

    info: ModelInfo
    shape: ModelShape
    draft_shape: ModelShape | None
    speculation: Speculation
    num_blocks: int


class VllmEngine:
    """See the module."""

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        facts: Facts,
        account: Account,
        policy: CarbonPolicy,
        *,
        text_stream: Callable[[SamplingParams], AnswerSink],
        clock: Callable[[], float],
        adapters: AdapterRegistry,
    ) -> None:
        self.account = account
        self.policy = policy
        self._backend = backend
        self._journal = journal
        self._facts = facts
        self._clock = clock
        self.adapters = adapters
        adapters.prepare_with(self._prepare_adapter)
        self._lock = threading.Lock()
        self._in_flight = InFlight(account, policy, text_stream, adapters.release)
        self._sequences: dict[str, Sequence] = {}
        self._num_steps = 0

    @property
    def info(self) -> ModelInfo:
        """The model it serves."""
        return self._facts.info

    @property
    def speculation(self) -> Speculation:
        """How all requests get draft tokens."""
        return self._facts.speculation

    @property
    def has_work(self) -> bool:
        """Whether `step` would run something."""
        return bool(self._sequences)

    def check(self, request: Request) -> None:
        """Refuse what cannot be served here; see `Engine`."""
        check_request(request, self.info)
        refuse(request, self.speculation)

    def prepare(self, request: Request) -> None:
        """Read its grammar: one that cannot be held to must not reach vLLM; see `Engine`."""
        if request.sampling.grammar is not None:
            self._backend.check_grammar(request.sampling.grammar)

    def _prepare_adapter(self, ref: AdapterRef, folder: Path) -> None:
        """Load an adapter into vLLM, which may keep it when nobody can ask for it any more."""
        with self._lock:
            self._backend.load(ref.digest, ref.name, folder)

    def add_request(self, request: Request) -> None:
        """Open a bill and queue the request's sequences."""
        sequences = self._in_flight.open(request, self.info)
        digest = None if request.adapter is None else request.adapter.digest
        salt = request.cache_salt
        with self._lock:
            for seq in sequences:
                self._sequences[_name(seq)] = seq
                prompt = seq.token_ids[: seq.prompt_len]
                self._backend.add(_name(seq), prompt, sampling_values(seq), digest, salt)

    def step(self) -> list[Token]:
        """Run one step of vLLM, charge it, take its tokens."""
        began_s = self._clock()
        with self._lock:
            outputs = self._backend.step()
        self._num_steps += 1
        chunks = [self._chunk(one) for one in self._journal.take() if one.sequence_id in self]
        self._charge(chunks, self._clock() - began_s)
        of_chunk = {_name(chunk.seq): chunk for chunk in chunks}
        tokens = [
            token
            for output in outputs
            for token in self._take(output, of_chunk.get(output.request_id))
        ]
        self._end([name for name, seq in self._sequences.items() if seq.is_finished])
        return tokens

    def __contains__(self, name: str) -> bool:
        return name in self._sequences

    def _chunk(self, one: Scheduled) -> Chunk:
        seq = self._sequences[one.sequence_id]
        drawn = one.start + one.num_tokens - len(one.draft) == len(seq.token_ids)
        return Chunk(seq, one.start, one.num_tokens, samples=drawn, draft=one.draft)

    def _charge(self, chunks: list[Chunk], duration_s: float) -> None:
        """The step's work; a draft model's passes take the part of its time that their size does.

        vLLM drafts for the next step within the one that samples.
        """
        shape, own = self._facts.draft_shape, self._facts.shape
        drafting = [chunk for chunk in chunks if chunk.samples]
        batch = Batch(tuple(chunks))
        if shape is None or not drafting:
            self.account.charge(batch, duration_s)
            return
        count = self._facts.speculation.num_tokens
        claim = count * shape.num_parameters / own.num_parameters
        drafted_s = duration_s * claim / (1 + claim)
        self.account.charge(batch, duration_s - drafted_s, ago_s=drafted_s)
        self.account.charge_draft(drafting, [DraftPass(tuple(drafting), count)], shape, drafted_s)

    def _take(self, output: Any, chunk: Chunk | None) -> list[Token]:
        """Tokens of one of vLLM's outputs, up to the one that ends the answer."""
        seq = self._sequences.get(output.request_id)
        if seq is None or seq.is_finished:
            return []
        (choice,) = output.outputs
        if seq.num_cached is None:
            seq.num_cached = output.num_cached_tokens or 0
        if output.prompt_logprobs and not seq.prompt_logprobs:
            seq.prompt_logprobs = self._prompt_logprobs(seq, output.prompt_logprobs)
        ids = tuple(choice.token_ids) if seq.max_len > seq.prompt_len else ()
        if not ids and not output.finished:
            return []
        count = seq.sampling.logprobs or 0
        logprobs = logprobs_of(ids, choice.logprobs[: len(ids)] if choice.logprobs else None, count)
        tokens = (
            append_all(seq, Sample(ids, logprobs)) if ids or not seq.sampling.max_tokens else []
        )
        if output.finished and not seq.is_finished:
            text = f"vLLM ended it ({choice.finish_reason})"
            return tokens + self._finish(seq.request.request_id, "error", text)
        if chunk is not None and chunk.draft:
            seq.num_drafted += len(chunk.draft)
            seq.num_accepted += min(len(tokens), len(ids) - 1)
        return tokens

    @staticmethod
    def _prompt_logprobs(seq: Sequence, found: SequenceOf[Any]) -> list[TokenLogprob | None]:
        """One for each prompt token but the first, for which vLLM, too, has nothing."""
        count = seq.sampling.prompt_logprobs or 0
        return list(logprobs_of(seq.token_ids[1 : seq.prompt_len], found[1:], count))

    def _end(self, names: SequenceOf[str]) -> None:
        """Forget sequences that are finished, and close requests that have no other."""
        if not names:
            return
        with self._lock:
            self._backend.abort(names)
        ended = [self._sequences.pop(name).request.request_id for name in names]
        for request_id in dict.fromkeys(ended):
            reasons = {seq.finish_reason for seq in self._in_flight.sequences(request_id)}
            if None not in reasons:
                self._close(request_id, "failed" if "error" in reasons else "completed")

    def abort(self, request_id: str) -> list[Token]:
        """End a request wherever it is; unknown ids are ignored, they have just finished."""
        if request_id not in self._in_flight:
            return []
        ended = self._finish(request_id, "abort")
        names = [_name(seq) for seq in self._in_flight.sequences(request_id)]
        with self._lock:
            self._backend.abort(names)
        for name in names:
            self._sequences.pop(name, None)
        self._close(request_id, "aborted")
        return ended

    def _finish(self, request_id: str, reason: FinishReason, error: str = "") -> list[Token]:
        """End what is left of a request; each sequence with a token that carries `text`."""
        ended = [seq for seq in self._in_flight.sequences(request_id) if not seq.is_finished]
        for seq in ended:
            seq.finish_reason = reason
        return [
            Token(request_id, seq.index, None, finish_reason=reason, error=error) for seq in ended
        ]

    def _close(self, request_id: str, outcome: Outcome) -> None:
        self._in_flight.close(request_id, outcome, self._facts.shape.num_layers)

    def settle(self) -> list[Receipt]:
        """Receipts that are ready, with their grams."""
        return self._in_flight.settle()

    def settle_in_s(self) -> float | None:
        """Seconds until `settle` is worth calling."""
        return self.account.settle_in_s()

    def drain(self, outcome: Outcome = "aborted") -> list[Receipt]:
        """Close the books and return the last receipts; vLLM is not asked any more."""
        for request_id in self._in_flight.ids():
            self._close(request_id, outcome)
        self._sequences.clear()
        return self._in_flight.drain()

    def if_lost(self) -> tuple[list[Receipt], Totals]:
        """What to book if this process died now; see `Engine`."""
        return self._in_flight.if_lost()

    def stats(self) -> Stats:
        """Counters, for metrics."""
        counts = self._in_flight.counts
        running = sum(seq.num_generated > 0 for seq in self._sequences.values())
        return Stats(
            num_waiting=len(self._sequences) - running,
            num_running=running,
            num_blocks=self._facts.num_blocks,
            num_free_blocks=self._backend.num_free_blocks,
            num_preemptions=self._journal.num_preemptions,
            num_steps=self._num_steps,
            prompt_tokens=counts.prompt,
            cached_tokens=counts.cached,
            completion_tokens=counts.generated,
            drafted_tokens=counts.drafted,
            accepted_tokens=counts.accepted,
            arms={},
            totals=self.account.published,
            num_sensor_errors=self.account.num_sensor_errors,
            num_counter_faults=self.account.num_counter_faults,
            num_violations=self.account.num_violations,
        )


def _name(seq: Sequence) -> str:
    """What a sequence is called in vLLM."""
    return f"{seq.request.request_id}/{seq.index}"
