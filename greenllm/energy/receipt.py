"""The receipt: what one request cost, in joules and grams. Only the standard library is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Lost: the server that worked on it died before it could write the receipt itself.
Outcome = Literal["completed", "aborted", "failed", "refused", "lost"]
Status = Literal["final", "provisional", "unmetered"]
Attribution = Literal["ok", "degraded", "contended", "none"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one request cost. None means unknown, never zero.

    The joules are those of the machine (IT energy); only the grams are multiplied by the PUE.
    `active_j` + `idle_j` is the total, and `prefill_j` + `decode_j` + `draft_j` is `active_j`.

    Attributes:
        request_id: The id in the answer and in the header `X-Request-Id`.
        model: The official name of the served model, never an alias.
        asked_model: The name that the client used for it; None where that is not known, or could be
            anything.
        outcome: How the request ended. `lost` means that its server died.
        created_s: When the request came. [seconds since 1970, UTC]
        status: `final` once the meter covers all of its work, `provisional` while part of it is
            predicted, `unmetered` where no joules are known.
        method: How the joules came about, such as `measured:rapl`; `none` for refused requests.
        measured: Whether a sensor counted every domain in the figures.
        endpoint: Path of the route that took it.
        adapter: Name of the adapter that was asked for.
        key: Name of the API key, or its fingerprint; never the key.
        team: Team of the key.
        user: The `user` that the client gave.
        metadata: The `metadata` that the client gave.
        http_status: What the client was sent, 200 for every stream that began; None where the
            client left before there was an answer.
        prompt_tokens: Tokens of all its prompts, each prompt counted once. [tokens]
        cached_tokens: Prompt tokens that the prefix cache spared. [tokens]
        completion_tokens: Tokens generated in all its sequences. [tokens]
        drafted_tokens: Draft tokens that were checked. [tokens]
        accepted_tokens: Draft tokens that were accepted. [tokens]
        approximate: Whether its tokens may come from an early exit.
        mean_layers: Layers computed for a token of an approximate answer, on average. [layers]
        agreement_target: The `agreement` that an approximate answer was asked for. [0 to 1]
        duration_s: From its arrival in the engine to its last token, waiting included. [s]
        resident_s: Its share of the machine's time: the duration of each step divided by the
            number of requests in it, summed. [s]
        active_j: Its share of what the steps took beyond idle power. [J]
        idle_j: Its share of the idle power during those steps. [J]
        prefill_j: The part of `active_j` that computed prompts. [J]
        decode_j: The part of `active_j` that generated tokens and checked draft tokens. [J]
        draft_j: The part of `active_j` that made draft tokens. [J]
        domains_j: The total by meter domain: `cpu`, `dram`, `gpu`. [J]
        flops: Floating point operations that its tokens needed. [FLOP]
        uncertainty: Half the width of a 90 % interval around the total, relative. It may be above
            1: then not even the order of magnitude is known.
        attribution: How well its share is known: `degraded` where the split between the requests
            of a batch is less certain, `contended` where other programs used the machine at the
            same time, `none` where there were no joules to split.
        operational_g: Grams from electricity: total joules x PUE x intensity. [g CO2e]
        embodied_g: Its share of the hardware's manufacture, by `resident_s`. [g CO2e]
        intensity_g_per_kwh: Carbon intensity of the electricity. [g CO2e/kWh]
        intensity_zone: Zone of the grid that the intensity is for.
        intensity_source: Who published it.
        intensity_year: Year it is for.
        pue: Power usage effectiveness: what the building draws for each watt of the machine.
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
    team: str | None = None
    user: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
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
        """Active plus idle share, in joules."""
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
        """Total joules over the duration of the request, in watts."""
        return (
            None
            if self.total_j is None or self.duration_s <= 0
            else (self.total_j / self.duration_s)
        )

    @property
    def gco2e(self) -> float | None:
        """Operational plus embodied grams of CO2e; None while either is unknown."""
        if self.operational_g is None or self.embodied_g is None:
            return None
        return self.operational_g + self.embodied_g
