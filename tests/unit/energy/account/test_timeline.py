"""Work lies where it was done: between ticks, in parts, and until every counter has passed it."""

from functools import partial

import pytest

from greenllm.core import Batch
from greenllm.energy.account.curve import WIDTHS
from greenllm.energy.account.steps import StepModel
from greenllm.energy.account.tally import WindowTally
from greenllm.energy.account.timeline import Timeline
from tests.unit.energy.account.test_tally import SHAPE, make_chunk

EVER = float("inf")


def make_timeline(resolution_s: float = EVER) -> Timeline:
    return Timeline(partial(WindowTally, SHAPE, StepModel(SHAPE), [1.0] * WIDTHS), resolution_s)


def add(timeline: Timeline, name: str, start_s: float, end_s: float) -> None:
    batch = Batch((make_chunk(name),))
    timeline.add(start_s, end_s, lambda tally: tally.add_step(batch, end_s - start_s))


def seconds(timeline: Timeline, start_s: float, end_s: float) -> dict[str, float]:
    return {key[0]: work.residence_s for key, work in timeline.between(start_s, end_s)}


def test_a_tick_divides_a_step_in_proportion_to_time() -> None:
    timeline = make_timeline(0.01)
    add(timeline, "a", 1.0, 2.0)
    add(timeline, "b", 2.0, 3.0)
    assert seconds(timeline, 0.0, 1.25) == {"a": pytest.approx(0.25)}
    assert seconds(timeline, 1.25, 2.5) == pytest.approx({"a": 0.75, "b": 0.5})
    assert sum(timeline.busy_s(1.25, 2.5)) == pytest.approx(1.25)
    assert seconds(timeline, 3.0, 9.0) == {}


def test_what_every_counter_has_passed_is_given_back_and_forgotten() -> None:
    timeline = make_timeline(0.01)
    add(timeline, "a", 1.0, 2.0)
    add(timeline, "b", 2.0, 3.0)
    assert timeline.forget(1.5) == []
    assert timeline.owners == {"a", "b"}
    assert [key[0] for key, _ in timeline.forget(2.0)] == ["a"]
    assert (timeline.owners, timeline.oldest_s) == ({"b"}, 3.0)
    assert [key[0] for key, _ in timeline.forget(EVER)] == ["b"]
    assert (bool(timeline), timeline.oldest_s) == (False, EVER)


def test_steps_of_a_stretch_are_added_up_until_it_is_long_enough() -> None:
    timeline = make_timeline(0.02)
    for number in range(5):
        add(timeline, "a", 0.01 * number, 0.01 * (number + 1))
    assert seconds(timeline, 0.0, 1.0) == {"a": pytest.approx(0.05)}
    assert [work.residence_s for _, work in timeline.forget(0.025)] == [pytest.approx(0.02)]


def test_a_stretch_that_has_been_counted_in_part_does_not_grow() -> None:
    timeline = make_timeline()
    add(timeline, "a", 1.0, 2.0)
    assert seconds(timeline, 0.0, 1.9) == {"a": pytest.approx(0.9)}
    timeline.seal(1.9)
    add(timeline, "b", 2.0, 3.0)
    assert seconds(timeline, 1.9, 3.0) == pytest.approx({"a": 0.1, "b": 1.0})


def test_a_pause_between_steps_is_no_part_of_them() -> None:
    timeline = make_timeline(0.02)
    add(timeline, "a", 0.0, 0.01)
    add(timeline, "a", 5.0, 5.01)
    assert seconds(timeline, 0.0, 1.0) == {"a": pytest.approx(0.01)}


def test_a_step_that_began_before_a_reading_is_not_lost() -> None:
    timeline = make_timeline()
    timeline.seal(1.5)
    add(timeline, "a", 1.0, 2.0)
    assert seconds(timeline, 1.5, 2.0) == {"a": pytest.approx(1.0)}


@pytest.mark.parametrize("at_s", [1.0, 2.0])
def test_a_step_within_one_tick_of_the_clock_is_counted_later(at_s: float) -> None:
    timeline = make_timeline()
    timeline.seal(at_s)
    add(timeline, "a", at_s, at_s)
    assert timeline.forget(at_s) == []
    assert seconds(timeline, at_s, at_s + 1) == {"a": 0.0}
    assert timeline.owners == {"a"}
