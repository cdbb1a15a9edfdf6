"""What an account has learnt of its machine: idle power, the power of steps, and their times."""

from __future__ import annotations

from collections.abc import Sequence

from greenllm.energy.account.certainty import WindowErrors
from greenllm.energy.account.curve import WIDTHS, PowerFit
from greenllm.energy.account.idle import IdlePower, busy_s
from greenllm.energy.account.steps import StepModel
from greenllm.energy.account.tally import WindowTally
from greenllm.energy.account.window import DomainCounter
from greenllm.energy.meters.protocol import Meter, Reading
from greenllm.shape import ModelShape

MIN_FITTED_WINDOWS = 8
# Standard deviation of a tick's moment: where the meter looks for it, where it does not, in
# periods, and where it is late, in parts of the lag.
_TICK_SEEN_S, _TICK_UNSEEN, _LAG = 0.003, 0.4, 0.09


class Learnt:
    """What windows and steps have taught so far; `shape` is the served model's."""

    def __init__(self, meter: Meter, shape: ModelShape) -> None:
        self.idle = IdlePower(meter.idle_w)
        self.steps = StepModel(shape)
        self.power: dict[str, PowerFit] = {}
        self._meter = meter
        self._shape = shape

    @property
    def num_windows(self) -> int:
        """Windows with work, of all domains."""
        return sum(fit.num_windows for fit in self.power.values())

    def tally(self) -> WindowTally:
        """An empty tally of work."""
        return WindowTally(self._shape, self.steps, self.watts)

    @property
    def watts(self) -> list[float]:
        """Active power of all domains by the width of steps; 1 where none is known."""
        if not self.power:
            return [1.0] * WIDTHS
        fits = [fit.watts for fit in self.power.values()]
        return [sum(watts) for watts in zip(*fits, strict=True)]

    def idle_w(self, domain: str) -> float:
        """Idle power of a domain; 0 where it is not known."""
        return self.idle.watts.get(domain, 0.0)

    def fit(self, domain: str) -> PowerFit:
        """The power of steps in a domain."""
        if domain not in self.power:
            self.power[domain] = PowerFit()
        return self.power[domain]

    def part(self, domain: str) -> float:
        """A domain's part of the active power."""
        return self.fit(domain).watts[0] / max(self.watts[0], 1e-12)

    def learn_idle(self, before: DomainCounter, now: Reading) -> None:
        """Learn from a window without work: from the counter's last tick to that of a reading."""
        energy_j = now.joules[before.domain] - before.joules
        duration_s = before.as_of(now) - before.as_of_s
        self.idle.learn(duration_s, {before.domain: energy_j}, busy_s(before.reading, now))

    def errors(self, domain: str, busy: Sequence[float], *, is_seen: bool) -> WindowErrors:
        """What is not known well about a window; whether its ticks were seen is told."""
        fit, period_s = self.fit(domain), self._meter.period_s
        tick_s = _TICK_SEEN_S if is_seen else period_s * _TICK_UNSEEN
        return WindowErrors(
            steps=self.steps.relative_error,
            power=fit.relative_error,
            tick_s=max(tick_s, _LAG * self._meter.lag_s),
            idle_w=self.idle.error_w(domain),
            busy_s=sum(busy),
            is_fitted=fit.num_windows + 1 >= MIN_FITTED_WINDOWS,
        )
