"""Waiting for the greenest window of a forecast, and the grams that come of it.

Contract: the run starts where `greenest_start` says for the time it is forecast to take; what the
machine draws meanwhile is shown as `waiting` and not billed. Grams of the run use the series' mean
over the time it really took. Not covered: a series that changes while the run waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from finetune.greenest import Series, greenest_start, read_series, seconds_of
from finetune.phases import PhaseAccount
from finetune.recipe import Recipe
from finetune.report import Grams
from greenllm.energy.grid import Intensity

Say = Callable[[str], None]
_LOOK_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a run started when it did."""

    series: Series
    began_s: float
    started_s: float
    expected_s: float

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "series": self.series.source,
            "waited_s": self.started_s - self.began_s,
            "started": datetime.fromtimestamp(self.started_s, UTC).isoformat(timespec="seconds"),
            "forecast_duration_s": self.expected_s,
            "g_per_kwh": self.series.mean(self.started_s, self.expected_s),
            "g_per_kwh_at_once": self.series.mean(self.began_s, self.expected_s),
        }

    def grams(self, grams: Grams, now_s: float) -> Grams:
        """Grams at the series' mean over the time the run took."""
        value = self.series.mean(self.started_s, max(1.0, now_s - self.started_s))
        name = self.series.source
        return replace(grams, intensity=Intensity(value, "SERIES", name, None, name, "the user's"))


def wait_for_green(
    recipe: Recipe,
    account: PhaseAccount,
    expected_s: float,
    say: Say,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Wait:
    """Sleep until it is time."""
    if recipe.intensity_series is None or recipe.deadline is None:
        raise ValueError("the recipe names no series or deadline")
    series, began_s = read_series(recipe.intensity_series), clock()
    start_s, mean = greenest_start(series, began_s, expected_s, seconds_of(recipe.deadline))
    now = series.mean(began_s, expected_s)
    when = datetime.fromtimestamp(start_s, UTC).isoformat(timespec="minutes")
    say(f"starts at {when}: {mean:.0f} g/kWh instead of {now:.0f} at once")
    with account.during("waiting"):
        while (left_s := start_s - clock()) > 0:
            sleep(min(left_s, _LOOK_EVERY_S))
            account.read()
    return Wait(series, began_s, clock(), expected_s)
