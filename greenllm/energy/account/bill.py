"""One request's running bill, and the receipt it becomes.

Uncertainty is the relative half-width of a 90 % interval: the counter's own, its update period
against the request's duration (quantisation, period / (sqrt(6) * duration)), and the error of the
split, which only matters for the part of the energy that was shared.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field, replace
from operator import add

from greenllm.core import Phase, Request
from greenllm.energy.account.attribution import CoefficientFit, Work
from greenllm.energy.meters.protocol import Meter
from greenllm.energy.receipt import Attribution, Outcome, Receipt

SCALE_BOUNDS = (0.7, 1.4)
MIN_FITTED_WINDOWS = 8
_Z90 = 1.645
_ALONE = 0.99


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


@dataclass(slots=True)
class Bill:
    """What a request has cost so far; `shares_j` weighs its windows by the share it had of them.

    `lost` is work that no reading will ever cover.
    """

    request: Request
    opened_s: float
    phase_j: dict[Phase, float] = field(default_factory=dict)
    domains_j: dict[str, float] = field(default_factory=dict)
    idle_j: float = 0.0
    predicted_j: float = 0.0
    flops: float = 0.0
    resident_s: float = 0.0
    shares_j: float = 0.0
    lost: dict[Phase, Work] = field(default_factory=dict)
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
        return min(1.0, self.shares_j / self.active_j) if self.active_j > 0 else 0.0

    def add(
        self, phase: Phase, work: Work, *, active_j: float, idle_j: float, predicted_j: float
    ) -> None:
        """Book a share of a window."""
        self.phase_j[phase] = self.phase_j.get(phase, 0.0) + active_j
        self.idle_j += idle_j
        self.predicted_j += predicted_j
        self.flops += work.flops
        self.resident_s += work.residence_s

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

    def final(self, meter: Meter, fit: CoefficientFit) -> Receipt:
        """The receipt once every window with its work is closed."""
        return self._priced(self._closing(), meter, fit, self.closed_s - self.opened_s)

    def if_lost(self, meter: Meter, fit: CoefficientFit, now_s: float) -> Receipt:
        """The receipt should its server be gone from now on: what has been metered is wasted."""
        duration_s = now_s - self.opened_s
        closing = self.closing or self._unpriced(meter, "lost", TokenCounts(), duration_s)
        if not self.sent_provisional:  # else its client has had the answer
            closing = replace(closing, outcome="lost")
        return self._priced(closing, meter, fit, duration_s)

    def _priced(
        self, closing: Receipt, meter: Meter, fit: CoefficientFit, duration_s: float
    ) -> Receipt:
        if not self.domains_j and meter.method == "unknown":
            return replace(closing, status="unmetered")
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
            resident_s=self.resident_s,
            uncertainty=self._uncertainty(meter, fit, duration_s),
            attribution=self._quality(fit),
        )

    def provisional(
        self, fit: CoefficientFit, pending: dict[Phase, Work], idle_w: float
    ) -> Receipt:
        """A receipt with predicted joules for the work no reading covers yet.

        Before the first metered window nothing can be predicted: the joules stay unknown.
        """
        if fit.num_windows == 0:
            return self._closing()
        pending_j = {phase: fit.coefficients.predict_j(work) for phase, work in pending.items()}
        pending_s = sum(work.residence_s for work in pending.values())
        prefill_j = self.phase_j.get("prefill", 0.0) + pending_j.get("prefill", 0.0)
        decode_j = self.phase_j.get("decode", 0.0) + pending_j.get("decode", 0.0)
        draft_j = self.phase_j.get("draft", 0.0) + pending_j.get("draft", 0.0)
        return replace(
            self._closing(),
            measured=False,
            active_j=prefill_j + decode_j + draft_j,
            idle_j=self.idle_j + idle_w * pending_s,
            prefill_j=prefill_j,
            decode_j=decode_j,
            draft_j=draft_j,
            flops=self.flops + sum(work.flops for work in pending.values()),
            resident_s=self.resident_s + pending_s,
            uncertainty=1.0,
            attribution="degraded",
        )

    def _closing(self) -> Receipt:
        if self.closing is None:
            raise RuntimeError(f"request {self.request.request_id} is still open")
        return self.closing

    def _uncertainty(self, meter: Meter, fit: CoefficientFit, duration_s: float) -> float:
        duration_s = max(duration_s, 1e-9)
        quantisation = _Z90 * meter.period_s / (math.sqrt(6) * duration_s)
        model = _Z90 * fit.relative_error * (1 - self.alone)
        return min(1.0, math.sqrt(meter.uncertainty**2 + quantisation**2 + model**2))

    def _quality(self, fit: CoefficientFit) -> Attribution:
        if self.active_j == 0:
            return "none"
        if self.alone > _ALONE:
            return "ok"  # nobody to share with: it is all its own, whatever was predicted
        scale = self.active_j / self.predicted_j if self.predicted_j > 0 else 0.0
        fitted = fit.num_windows >= MIN_FITTED_WINDOWS
        return "ok" if fitted and SCALE_BOUNDS[0] <= scale <= SCALE_BOUNDS[1] else "degraded"
