"""Waiting for the greenest window of a forecast, and the grams that come of it.

Contract: the run starts where `greenest_start` says for the time it is forecast to take; what the
machine draws meanwhile is shown as `waiting` and not billed. What was spent before the wait is
priced at the series' mean of that time, what came after at the mean since the start; a run that
goes on waits no second time and keeps the series. Not covered: a series that changes while the
run waits; pauses after the start, which count into the second mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from finetune.bill.phases import PhaseAccount
from finetune.bill.report import Grams
from finetune.files import WAIT, read_json, write_json
from finetune.plan.greenest import Series, greenest_start, read_series, seconds_of
from finetune.recipe import Recipe
from greenllm.config import ConfigError
from greenllm.energy.carbon.grid import Intensity

Say = Callable[[str], None]
_LOOK_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Wait:
    """When a wait began and ended (Unix seconds), and what had been spent before it."""

    series: Series
    spent_since_s: float
    spent_j: float
    began_s: float
    started_s: float
    expected_s: float

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        started = datetime.fromtimestamp(self.started_s, UTC)
        return {
            "series": self.series.source,
            "waited_s": self.started_s - self.began_s,
            "started": started.isoformat(timespec="seconds"),
            "forecast_duration_s": self.expected_s,
            "g_per_kwh": self.series.mean(self.started_s, self.expected_s),
            "g_per_kwh_at_once": self.series.mean(self.began_s, self.expected_s),
        }

    def grams(self, grams: Grams, end_s: float, total_j: float) -> Grams:
        """Grams at the series' mean, weighted by what was spent before and after the wait."""
        before = self.series.mean(self.spent_since_s, self.began_s - self.spent_since_s)
        after = self.series.mean(self.started_s, max(1.0, end_s - self.started_s))
        share = min(1.0, self.spent_j / total_j) if total_j else 0.0
        value, name = share * before + (1 - share) * after, self.series.source
        return replace(grams, intensity=Intensity(value, "SERIES", name, None, name, "the user's"))


def waited(recipe: Recipe) -> Wait | None:
    """The wait of a run that goes on; None where it has not waited yet."""
    found = read_json(recipe.folder / WAIT) if recipe.resume else None
    if found is None or recipe.intensity_series is None:
        return None
    return Wait(read_series(recipe.intensity_series), **found)


def wait_for_green(
    recipe: Recipe,
    account: PhaseAccount,
    expected_s: float,
    say: Say,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Wait:
    """Sleep until it is time, and note the wait in the run's folder.

    Raises:
        ConfigError: the series has nothing to say about the time from now on.
    """
    if recipe.intensity_series is None or recipe.deadline is None:
        raise ValueError("the recipe names no series or deadline")
    series, began_s = read_series(recipe.intensity_series), clock()
    if series.end_s <= began_s:
        end = datetime.fromtimestamp(series.end_s, UTC).isoformat(timespec="minutes")
        raise ConfigError(
            f"--intensity-series: {series.source} ends in the past, at {end}", "intensity_series"
        )
    account.read()
    spent = account.spent()
    start_s, mean = greenest_start(series, began_s, expected_s, seconds_of(recipe.deadline))
    now = series.mean(began_s, expected_s)
    when = datetime.fromtimestamp(start_s, UTC).isoformat(timespec="minutes")
    say(f"starts at {when}: {mean:.0f} g/kWh instead of {now:.0f} at once")
    with account.during("waiting"):
        while (left_s := start_s - clock()) > 0:
            sleep(min(left_s, _LOOK_EVERY_S))
            account.read()
    times = {
        "spent_since_s": began_s - spent.duration_s, "spent_j": spent.total_j,
        "began_s": began_s, "started_s": clock(), "expected_s": expected_s,
    }  # fmt: skip
    write_json(recipe.folder / WAIT, times)
    return Wait(series, **times)
