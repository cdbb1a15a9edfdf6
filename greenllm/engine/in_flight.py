"""The requests that an engine has in flight: their sequences, their bills, what they had and got.

Contract: a request is opened once and closed once; its bill is the account's from then on, and its
adapter is given back. Counts are of closed requests. Used by the engine's thread.

Not covered: who runs when (see `scheduler`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace

from greenllm.core import AdapterRef, Request, SamplingParams, Sequence, TextSink, sequences_of
from greenllm.energy.account.account import Account, Totals
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.exits import mean_layers
from greenllm.model.info import ModelInfo


@dataclass(slots=True)
class TokenCounts:
    """Tokens of the requests that have been closed."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class _Open:
    request: Request
    sequences: list[Sequence]


@dataclass(slots=True)
class InFlight:
    """See the module; `release` gives an adapter back.

    `num_speculating` open requests ask for draft tokens themselves.
    """

    account: Account
    policy: CarbonPolicy
    text_stream: Callable[[SamplingParams], TextSink]
    release: Callable[[AdapterRef], None]
    counts: TokenCounts = field(default_factory=TokenCounts)
    num_speculating: int = 0
    _open: dict[str, _Open] = field(default_factory=dict)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def ids(self) -> list[str]:
        """Of all that are open."""
        return list(self._open)

    def sequences(self, request_id: str) -> SequenceOf[Sequence]:
        """Of an open request."""
        return self._open[request_id].sequences

    def open(self, request: Request, info: ModelInfo) -> SequenceOf[Sequence]:
        """Start a request's bill; its sequences, each with its text."""
        self.account.open(request)
        sequences = sequences_of(
            request, eos_token_ids=info.eos_token_ids, max_len=info.context_length
        )
        for seq in sequences:
            seq.text = self.text_stream(request.sampling)
        self._open[request.request_id] = _Open(request, sequences)
        self.num_speculating += request.asks_for_drafts
        return sequences

    def close(self, request_id: str, outcome: Outcome, num_layers: int) -> None:
        """End a request's bill; `num_layers` is how many layers the model has."""
        entry = self._open.pop(request_id)
        request, sequences = entry.request, entry.sequences
        self.num_speculating -= request.asks_for_drafts
        cached = _sum_cached(sequences)
        generated = sum(seq.num_generated for seq in sequences)
        drafted = sum(seq.num_drafted for seq in sequences)
        accepted = sum(seq.num_accepted for seq in sequences)
        self.counts.prompt += request.prompt_tokens
        self.counts.cached += cached
        self.counts.completion += generated
        self.counts.drafted += drafted
        self.counts.accepted += accepted
        self.account.finish(
            request_id,
            outcome,
            cached=cached,
            generated=generated,
            drafted=drafted,
            accepted=accepted,
            mean_layers=_mean_layers(sequences, num_layers),
        )
        if request.adapter is not None:
            self.release(request.adapter)

    def settle(self) -> list[Receipt]:
        """Receipts that are ready, with their grams."""
        return self._with_grams(self.account.settle())

    def drain(self) -> list[Receipt]:
        """The last receipts, without waiting."""
        return self._with_grams(self.account.drain())

    def if_lost(self) -> tuple[list[Receipt], Totals]:
        """What to book should this process die now; see `Account.if_lost`."""
        receipts, totals = self.account.if_lost()
        return self._with_grams(self._counted(receipt) for receipt in receipts), totals

    def _counted(self, receipt: Receipt) -> Receipt:
        """With the tokens that an open request has so far."""
        entry = self._open.get(receipt.request_id)
        if entry is None:
            return receipt
        return replace(
            receipt,
            cached_tokens=_sum_cached(entry.sequences),
            completion_tokens=sum(seq.num_generated for seq in entry.sequences),
        )

    def _with_grams(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        return [self.policy.apply(receipt) for receipt in receipts]


def _sum_cached(sequences: SequenceOf[Sequence]) -> int:
    """Prompt tokens found in the cache; a prompt with several answers counts once."""
    return sum(seq.num_cached or 0 for seq in sequences if seq.leader is None)


def _mean_layers(sequences: SequenceOf[Sequence], num_layers: int) -> float | None:
    """Layers asked for a token of an approximate answer; None for others, and without tokens."""
    exits = [seq.exit for seq in sequences if seq.exit is not None]
    generated = sum(seq.num_generated for seq in sequences)
    return mean_layers(exits, generated, num_layers) if exits and generated else None
