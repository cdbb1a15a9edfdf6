"""One machine of the fleet: its measured curve, what it draws without work, and what is assumed.

Contract: every figure is either from a result, which is named, or assumed, and `Machine.notes`
says which. An assumption can be set by name; names that do not exist and values
that cannot be are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from evals.entry import BenchError
from evals.studies.placement.curve import Curve, PromptCost


@dataclass(frozen=True, slots=True)
class Assumed:
    """What no result says; None takes what was measured.

    Args:
        idle_w: watts of a machine that is awake without work.
        start_s: seconds until a machine that slept answers.
        start_w: watts meanwhile; None is the power at batch 1.
        sleep_share: power asleep, as a share of idle power.
        sleep_after_s: how long a machine is without work before it sleeps.
        spare_share: places kept free ahead of arrivals, as a share of those awake.
        detour_s: what an answer from another region than the first takes longer.
        max_detour_s: carbon-aware placement does not go further than this.
        prompt_tokens_per_s: speed of reading prompts, at the power of the largest batch.
        max_context: the trace's lengths shrink by one factor until the longest request fits.
        requests: at most so many in a run; larger fleets see a shorter stretch of time.
        seed: of what is drawn.
    """

    idle_w: float | None = None
    start_s: float | None = None
    start_w: float | None = None
    sleep_share: float = 0.1
    sleep_after_s: float = 60.0
    spare_share: float = 0.1
    detour_s: float = 0.15
    max_detour_s: float = 1.0
    prompt_tokens_per_s: float | None = None
    max_context: float = 2048.0
    requests: float = 1_000_000.0
    seed: float = 0.0

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Assumed:
        """From `name=number`.

        Raises:
            BenchError: a name does not exist, or a value is not a number of 0 or more.
        """
        names = [field.name for field in fields(cls)]
        found: dict[str, float] = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in names:
                raise BenchError(
                    f"nothing called {name!r} is assumed; there are {', '.join(names)}"
                )
            found[name] = _number(name, text)
        return replace(cls(), **found)

    def as_dict(self) -> dict[str, float | None]:
        """For a result."""
        return asdict(self)


def _number(name: str, text: str) -> float:
    above_zero = ("sleep_after_s", "prompt_tokens_per_s", "max_context", "requests")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and name in above_zero):
        least = "a number above 0" if name in above_zero else "a number of 0 or more"
        raise BenchError(f"{name} must be {least}, as in {name}=1.5, not {text!r}")
    return value


@dataclass(frozen=True, slots=True)
class Machine:
    """What the simulator needs to know of one machine; all machines are alike."""

    curve: Curve
    prompt: PromptCost
    idle_w: float
    sleep_w: float
    start_s: float
    start_w: float
    notes: Mapping[str, str]

    def busy_s(self, prompt_tokens: int, tokens: int, batch: int) -> float:
        """Machine seconds of so many tokens, generated in batches of this size."""
        generation_s = tokens * self.curve.step_s(batch) / batch
        return prompt_tokens * self.prompt.s_per_token + generation_s

    def as_dict(self) -> dict[str, Any]:
        """For a result."""
        sizes = [point.batch for point in self.curve.points]
        return {
            "points": [asdict(point) for point in self.curve.points],
            "step_s": {str(size): self.curve.step_s(size) for size in sizes},
            "step_j": {str(size): self.curve.step_j(size) for size in sizes},
            "prompt": asdict(self.prompt),
            "idle_w": self.idle_w,
            "sleep_w": self.sleep_w,
            "start_s": self.start_s,
            "start_w": self.start_w,
            "methods": self.curve.methods,
            "notes": dict(self.notes),
        }


def make_machine(
    curve: Curve, assumed: Assumed, measured_idle_w: float | None, idle_source: str
) -> Machine:
    """A machine from what was measured, and from what is assumed in place of it or beside it.

    Raises:
        BenchError: something is neither measured nor assumed.
    """
    idle_w, idle_note = _choose("idle_w", assumed.idle_w, measured_idle_w, idle_source)
    start_s, start_note = _choose("start_s", assumed.start_s, curve.start_s, "the curve's result")
    prompt, prompt_note = _prompt(curve, assumed)
    start_w = curve.power_w(1) if assumed.start_w is None else assumed.start_w
    notes = {
        "steps": "seconds measured, joules "
        + (", ".join(curve.methods or ()) or "of no known method"),
        "prompt": prompt_note,
        "idle_w": idle_note,
        "start_s": start_note,
        "start_w": "assumed" if assumed.start_w is not None else "assumed: the power at batch 1",
        "sleep_w": f"assumed: {assumed.sleep_share:g} of idle power",
    }
    sleep_w = assumed.sleep_share * idle_w
    return Machine(curve, prompt, idle_w, sleep_w, start_s, start_w, notes)


def _choose(
    name: str, assumed: float | None, measured: float | None, source: str
) -> tuple[float, str]:
    if assumed is not None:
        return assumed, "assumed"
    if measured is None:
        raise BenchError(f"{name} was not measured there: assume it, with --assume {name}=NUMBER")
    return measured, f"from {source}"


def _prompt(curve: Curve, assumed: Assumed) -> tuple[PromptCost, str]:
    if assumed.prompt_tokens_per_s is not None:
        s_per_token = 1 / assumed.prompt_tokens_per_s
        cost = PromptCost(s_per_token, curve.power_w(curve.largest) * s_per_token)
        return cost, "assumed, at the power of the largest batch"
    if curve.prompt is None:
        raise BenchError(
            "there is no cost of prompts in it: take a result of the study peers, or assume"
            " it, with --assume prompt_tokens_per_s=NUMBER"
        )
    return curve.prompt, "from the curve's result"
