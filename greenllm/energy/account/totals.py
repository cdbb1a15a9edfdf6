"""Where all joules went: sums by destination, and labels for what requests spent."""

from __future__ import annotations

from dataclasses import dataclass

CONSERVATION_TOLERANCE = 1e-6


@dataclass(slots=True)
class Totals:
    """Joules by destination since the account was opened; together they are `meter_j`."""

    meter_j: float = 0.0
    load_j: float = 0.0
    idle_j: float = 0.0
    unattributed_j: float = 0.0
    requests_j: float = 0.0
    open_j: float = 0.0
    train_j: float = 0.0

    def told(self) -> dict[str, float]:
        """The sums by the names that people and clients are told."""
        return {
            "meter_joules": self.meter_j,
            "load_joules": self.load_j,
            "idle_joules": self.idle_j,
            "training_joules": self.train_j,
            "unattributed_joules": self.unattributed_j,
            "request_joules": self.requests_j,
            "open_joules": self.open_j,
        }

    @property
    def residual(self) -> float:
        """What is missing or too much, relative to the meter."""
        booked_j = self.load_j + self.idle_j + self.train_j + self.unattributed_j
        booked_j += self.requests_j + self.open_j
        return abs(self.meter_j - booked_j) / max(abs(self.meter_j), 1e-9)


@dataclass(frozen=True, slots=True)
class Label:
    """What a joule was spent on, for the metrics."""

    domain: str
    phase: str
    model: str
    adapter: str
