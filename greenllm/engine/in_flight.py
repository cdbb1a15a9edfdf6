"""The requests that an engine has in flight: their sequences, their bills, what they had and got.

Contract: a request is opened once and closed once; its bill is the account's from then on, and its
adapter is given back. Counts are of closed requests. Used by the engine's thread.

Not covered: who runs when (see `scheduler`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace

from greenllm.core import (
    AdapterRef,
    AnswerSink,
    FinishReason,
    Request,
    SamplingParams,
    Sequence,
    Token,
    sequences_of,
)
from greenllm.energy.account.account import Account
from greenllm.energy.account.bill import TokenCounts
from greenllm.energy.account.totals import Totals
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.exits import mean_layers
from greenllm.model.info import ModelInfo


@dataclass(frozen=True, slots=True)
class _Open:
    request: Request
    sequences: list[Sequence]

    def counts(self) -> TokenCounts:
        """So far; a prompt with several answers was found in the cache once."""
        sequences = self.sequences
        return TokenCounts(
            prompt=self.request.prompt_tokens,
            cached=sum(seq.num_cached or 0 for seq in sequences if seq.leader is None),
            generated=sum(seq.num_generated for seq in sequences),
            drafted=sum(seq.num_drafted for seq in sequences),
            accepted=sum(seq.num_accepted for seq in sequences),
        )


@dataclass(slots=True)
class InFlight:
    """See the module; `release` gives an adapter back.

    `num_speculating` open requests ask for draft tokens themselves.
    """

    account: Account
    policy: CarbonPolicy
    text_stream: Callable[[SamplingParams], AnswerSink]
    release: Callable[[AdapterRef], None]
    counts: TokenCounts = TokenCounts()
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
        """Start a request's bill; its sequences, still without their texts (see `read`)."""
        self.account.open(request)
        sequences = sequences_of(
            request, eos_token_ids=info.eos_token_ids, max_len=info.context_length
        )
        self._open[request.request_id] = _Open(request, sequences)
        self.num_speculating += request.asks_for_drafts
        return sequences

    def read(self, seq: Sequence) -> None:
        """Give a sequence what turns its tokens into text."""
        seq.text = self.text_stream(seq.sampling)

    def end(self, request_id: str, reason: FinishReason, error: str = "") -> list[Token]:
        """End what is left of a request; each sequence with a token that carries `error`."""
        ended = [seq for seq in self.sequences(request_id) if not seq.is_finished]
        for seq in ended:
            seq.finish_reason = reason
        return [
            Token(request_id, seq.index, None, finish_reason=reason, error=error) for seq in ended
        ]

    def close(self, request_id: str, outcome: Outcome, num_layers: int) -> None:
        """End a request's bill; `num_layers` is how many layers the model has."""
        entry = self._open.pop(request_id)
        counts = entry.counts()
        self.counts += counts
        self.num_speculating -= entry.request.asks_for_drafts
        exits = [seq.exit for seq in entry.sequences if seq.exit is not None]
        layers = mean_layers(exits, counts.generated, num_layers) if exits else None
        self.account.finish(request_id, outcome, counts, mean_layers=layers)
        if entry.request.adapter is not None:
            self.release(entry.request.adapter)

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
        counts = entry.counts()
        return replace(receipt, cached_tokens=counts.cached, completion_tokens=counts.generated)

    def _with_grams(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        return [self.policy.apply(receipt) for receipt in receipts]
