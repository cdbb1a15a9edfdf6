"""One request's running bill, and the receipt it becomes.

Not covered: how a window is divided (see `account`), and how well (see `certainty`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import astuple, dataclass, field, replace
from operator import add

from greenllm.core import Phase, Request
from greenllm.energy.account.attribution import Work
from greenllm.energy.account.certainty import ErrorBudget, Part, WindowErrors
from greenllm.energy.account.window import DomainWindow
from greenllm.energy.meters.protocol import Meter
from greenllm.energy.receipt import Attribution, Outcome, Receipt

SCALE_BOUNDS = (0.7, 1.4)
# An attribution is `ok` up to this relative half-width, the sensor's part left out.
OK_WITHIN = 0.2
_ALONE = 0.99
_CONTENDED = 0.1


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of a request, or of several."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Share:
    """A request's part of one domain's window, in one phase."""

    domain: str
    phase: Phase
    work: Work
    active_j: float
    idle_j: float
    predicted_j: float


@dataclass(slots=True)
class Bill:
    """What a request has cost so far.

    Attributes:
        alone_j: Its active joules, each times the share it had of its window.
        unfitted_j: Active joules that were divided before the fit had seen enough windows.
        strangers_s: By domain, its time on the machine times the part that strangers used.
        lost: Work that no counter will ever cover.
        is_doubtful: A counter did something in its windows that no counter should.
        is_unknown: A domain was not metered without which its joules mean nothing.
    """

    request: Request
    opened_s: float
    phase_j: dict[Phase, float] = field(default_factory=dict)
    domains_j: dict[str, float] = field(default_factory=dict)
    idle_j: float = 0.0
    predicted_j: float = 0.0
    flops: float = 0.0
    resident_s: float = 0.0
    strangers_s: dict[str, float] = field(default_factory=dict)
    alone_j: float = 0.0
    unfitted_j: float = 0.0
    errors: ErrorBudget = field(default_factory=ErrorBudget)
    lost: dict[Phase, Work] = field(default_factory=dict)
    is_doubtful: bool = False
    is_unknown: bool = False
    closing: Receipt | None = None
    closed_s: float = 0.0
    sent_provisional: bool = False

    @property
    def active_j(self) -> float:
        """Active joules of all phases."""
        return sum(self.phase_j.values())

    @property
    def total_j(self) -> float:
        """Active joules and the idle share."""
        return self.active_j + self.idle_j

    @property
    def alone(self) -> float:
        """1 when nobody else shared its windows, near 0 in a large batch."""
        return min(1.0, self.alone_j / self.active_j) if self.active_j > 0 else 0.0

    @property
    def strangers_part(self) -> float:
        """Which part of the machine strangers used while it ran."""
        strangers_s = max(self.strangers_s.values(), default=0.0)
        return min(1.0, strangers_s / self.resident_s) if self.resident_s > 0 else 0.0

    def add(self, shares: Sequence[Share], window: DomainWindow, errors: WindowErrors) -> None:
        """Book its shares of one domain's window."""
        for share in shares:
            self.phase_j[share.phase] = self.phase_j.get(share.phase, 0.0) + share.active_j
            self.predicted_j += share.predicted_j
        active_j = sum(share.active_j for share in shares)
        idle_j = sum(share.idle_j for share in shares)
        resident_s = sum(share.work.residence_s for share in shares)
        domain, strangers = shares[0].domain, window.cpu.others
        self.idle_j += idle_j
        self.domains_j[domain] = self.domains_j.get(domain, 0.0) + active_j + idle_j
        strangers_s = self.strangers_s.get(domain, 0.0)
        self.strangers_s[domain] = strangers_s + strangers * resident_s
        self.alone_j += active_j**2 / window.active_j if window.active_j > 0 else 0.0
        self.unfitted_j += 0.0 if errors.is_fitted else active_j
        present_s = sum(share.work.present_s for share in shares)
        self.errors.add(errors, window, Part(active_j, idle_j, resident_s, present_s))

    def count(self, work: Work) -> None:
        """Note work that every counter has counted."""
        self.flops += work.flops
        self.resident_s += work.residence_s

    def miss(self, domains: Set[str], needed: Set[str]) -> None:
        """Note domains that were not metered while it ran; some tell too much to do without."""
        self.is_unknown |= bool(domains & needed)
        self.is_doubtful |= bool(domains)

    def close(
        self,
        meter: Meter,
        outcome: Outcome,
        *,
        closed_s: float,
        counts: TokenCounts,
        mean_layers: float | None = None,
    ) -> None:
        """Fix everything but the joules."""
        self.closed_s = closed_s
        closing = self._unpriced(meter, outcome, counts, closed_s - self.opened_s)
        self.closing = replace(closing, mean_layers=mean_layers)

    def _unpriced(
        self, meter: Meter, outcome: Outcome, counts: TokenCounts, duration_s: float
    ) -> Receipt:
        """A receipt without joules."""
        request, approximation = self.request, self.request.approximation
        return Receipt(
            request_id=request.request_id,
            model=request.model,
            asked_model=request.asked_model,
            adapter=request.adapter_name,
            key=request.key,
            team=request.team,
            user=request.user,
            metadata=request.metadata,
            endpoint=request.endpoint,
            outcome=outcome,
            created_s=request.created_s,
            status="provisional",
            method=meter.method,
            measured=meter.measured,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=counts.cached,
            completion_tokens=counts.generated,
            drafted_tokens=counts.drafted,
            accepted_tokens=counts.accepted,
            approximate=approximation is not None,
            agreement_target=None if approximation is None else approximation.agreement,
            duration_s=duration_s,
        )

    def final(self, meter: Meter) -> Receipt:
        """The receipt once every window with its work is closed."""
        return self._priced(self._closing(), meter)

    def if_lost(self, meter: Meter, now_s: float, *, has_worked: bool) -> Receipt:
        """The receipt should its server be gone from now on: what has been metered is wasted.

        Its joules are unknown where some will never be, or where it `has_worked` and none were yet.
        """
        duration_s = now_s - self.opened_s
        closing = self.closing or self._unpriced(meter, "lost", TokenCounts(), duration_s)
        if not self.sent_provisional:  # else its client has had the answer
            closing = replace(closing, outcome="lost")
        if self.lost or (has_worked and not self.domains_j):
            return replace(closing, measured=False)
        return self._priced(closing, meter)

    def _priced(self, closing: Receipt, meter: Meter) -> Receipt:
        if self.is_unknown or (not self.domains_j and meter.method == "unknown"):
            return replace(closing, status="unmetered", measured=False)
        return replace(
            closing,
            status="final",
            active_j=self.active_j,
            idle_j=self.idle_j,
            prefill_j=self.phase_j.get("prefill", 0.0),
            decode_j=self.phase_j.get("decode", 0.0),
            draft_j=self.phase_j.get("draft", 0.0),
            domains_j=dict(self.domains_j),
            flops=self.flops,
            resident_s=self.resident_s * (1 - self.strangers_part),
            uncertainty=self._uncertainty(meter.uncertainty),
            attribution=self._quality(),
        )

    def provisional(
        self, pending_j: Mapping[Phase, float] | None, pending_idle_j: float, pending: Work
    ) -> Receipt:
        """A receipt with predicted joules for the work no counter covers yet.

        Before the first metered window nothing can be predicted, None, and the joules are unknown.
        """
        closing = replace(self._closing(), measured=False)
        if pending_j is None or self.is_unknown:
            return closing
        prefill_j = self.phase_j.get("prefill", 0.0) + pending_j.get("prefill", 0.0)
        decode_j = self.phase_j.get("decode", 0.0) + pending_j.get("decode", 0.0)
        draft_j = self.phase_j.get("draft", 0.0) + pending_j.get("draft", 0.0)
        return replace(
            closing,
            active_j=prefill_j + decode_j + draft_j,
            idle_j=self.idle_j + pending_idle_j,
            prefill_j=prefill_j,
            decode_j=decode_j,
            draft_j=draft_j,
            flops=self.flops + pending.flops,
            resident_s=self.resident_s + pending.residence_s,
            uncertainty=1.0,
            attribution="degraded",
        )

    def _closing(self) -> Receipt:
        if self.closing is None:
            raise RuntimeError(f"request {self.request.request_id} is still open")
        return self.closing

    def _uncertainty(self, sensor: float) -> float:
        """Relative half-width of a 90 % interval; the sensor's alone where there are no joules."""
        total_j = self.total_j
        return self.errors.half_width_j(total_j, sensor) / total_j if total_j > 0 else sensor

    def _quality(self) -> Attribution:
        if self.active_j == 0:
            return "none"
        if self.strangers_part > _CONTENDED:
            return "contended"
        if self.is_doubtful:
            return "degraded"
        if self.alone > _ALONE:
            return "ok"  # nobody to share with: it is all its own, whatever was predicted
        scale = self.active_j / self.predicted_j if self.predicted_j > 0 else 0.0
        is_plausible = SCALE_BOUNDS[0] <= scale <= SCALE_BOUNDS[1]
        is_fitted = self.unfitted_j <= self.active_j / 2
        is_close = self._uncertainty(0.0) <= OK_WITHIN
        return "ok" if is_plausible and is_fitted and is_close else "degraded"
