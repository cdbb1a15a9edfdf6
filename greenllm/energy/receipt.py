"""The receipt: what one request cost, in joules and grams. Only the standard library is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Lost: the server that worked on it is gone, and with it what it had not told yet.
Outcome = Literal["completed", "aborted", "failed", "refused", "lost"]
Status = Literal["final", "provisional", "unmetered"]
Attribution = Literal["ok", "degraded", "none"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one request cost. None means unknown, never zero.

    `model` is the official name; `asked_model` is the name that the client used for it, None where
    that is not known or could be anything.
    `active_j` is its share of the steps it took part in; `idle_j` its share of the power the
    machine draws anyway, for the time it was in the batch. Prefill, decode and draft add up to
    `active_j`; checking guesses is decoding. Both are IT energy: PUE enters the grams
    only. `resident_s` is its share of the machine's time: step durations over requests in the step.
    `uncertainty` is the relative half-width of a 90 % interval. `http_status` is what the client
    was sent, 200 for streams; None where it left before there was an answer. `mean_layers` were
    asked for a token of an approximate answer, `agreement_target` is its `Approximation.agreement`.
    """

    request_id: str
    model: str
    outcome: Outcome
    created_s: float
    status: Status
    method: str
    measured: bool
    endpoint: str = ""
    asked_model: str | None = None
    adapter: str | None = None
    key: str | None = None
    http_status: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    approximate: bool = False
    mean_layers: float | None = None
    agreement_target: float | None = None
    duration_s: float = 0.0
    resident_s: float = 0.0
    active_j: float | None = None
    idle_j: float | None = None
    prefill_j: float | None = None
    decode_j: float | None = None
    draft_j: float | None = None
    domains_j: Mapping[str, float] = field(default_factory=dict)
    flops: float | None = None
    uncertainty: float | None = None
    attribution: Attribution = "none"
    operational_g: float | None = None
    embodied_g: float | None = None
    intensity_g_per_kwh: float | None = None
    intensity_zone: str | None = None
    intensity_source: str | None = None
    intensity_year: int | None = None
    pue: float | None = None

    @property
    def total_j(self) -> float | None:
        """Active plus idle share."""
        return None if self.active_j is None else self.active_j + (self.idle_j or 0.0)

    @property
    def joules_per_token(self) -> float | None:
        """Total joules per completion token."""
        total_j = self.total_j
        return (
            None
            if total_j is None or not self.completion_tokens
            else (total_j / self.completion_tokens)
        )

    @property
    def avg_power_w(self) -> float | None:
        """Total joules over the request's duration."""
        return (
            None
            if self.total_j is None or self.duration_s <= 0
            else (self.total_j / self.duration_s)
        )

    @property
    def gco2e(self) -> float | None:
        """Operational plus embodied emissions; None while either is unknown."""
        if self.operational_g is None or self.embodied_g is None:
            return None
        return self.operational_g + self.embodied_g
