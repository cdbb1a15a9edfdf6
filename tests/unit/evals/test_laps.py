"""A search compares settings by all joules or not at all."""

import pytest

from evals.tuning.servers import Laps
from greenllm.core import GreenllmError
from greenllm.energy.meters.protocol import Reading, ReplayMeter


def test_a_lap_is_what_the_meter_counted() -> None:
    laps = Laps(ReplayMeter([Reading(0, {"cpu": 1.0}), Reading(2, {"cpu": 8.0})]))
    assert laps.lap() == 7.0


def test_a_domain_that_is_lost_ends_the_search() -> None:
    lost = Reading(2, {"cpu": 8.0}, lost={"gpu": "fell off the bus"})
    laps = Laps(ReplayMeter([Reading(0, {"cpu": 1.0, "gpu": 1.0}), lost]))
    with pytest.raises(GreenllmError, match="any more: gpu: fell off the bus"):
        laps.lap()
