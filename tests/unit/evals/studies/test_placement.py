"""The simulated fleet: joules and work are conserved, and simple cases are those by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.entry import BenchError
from evals.load.plan import Shot, TraceError
from evals.studies import study
from evals.studies.placement.__main__ import main, split_arm
from evals.studies.placement.curve import Curve, Point, PromptCost, idle_w, read_curve
from evals.studies.placement.machine import Assumed, Machine, make_machine
from evals.studies.placement.outcome import Outcome
from evals.studies.placement.policies import Carbon, Pack, Placement, Policy, RegionView, Spread
from evals.studies.placement.questions import Scenario, fleets, limits, replicas
from evals.studies.placement.regions import HourlyIntensity, load_regions, read_region
from evals.studies.placement.setting import Region, Setting
from evals.studies.placement.simulate import simulate
from evals.studies.placement.trace import Arrival, Trace, load_trace

CURVE = Curve(
    (Point(1, 100.0, 0.02), Point(4, 200.0, 0.012), Point(8, 250.0, 0.01)),
    PromptCost(0.001, 0.003),
    prompt_share=0.5,
    start_s=5.0,
)
MACHINE = make_machine(CURVE, Assumed(), 0.5, "nowhere")
POLICIES: tuple[Policy, ...] = (Spread(), Pack(), Carbon())
HOUR = "Datetime (UTC),Zone Name,Zone Id,Carbon Intensity gCO₂eq/kWh (LCA)"
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,20,10\n"


def grid(zone: str, *hours: float) -> HourlyIntensity:
    return HourlyIntensity(zone, zone, 0.0, hours * 100 if len(hours) == 1 else hours)


def fleet(*machines: int, limit: int = 4, window_s: float = 10.0, **other: Any) -> Setting:
    grids = (grid("A", 300.0), grid("B", 100.0))
    regions = tuple(
        Region(f"region {place}", count, 0.2 * place, grids[place])
        for place, count in enumerate(machines)
    )
    found = Setting(MACHINE, limit, regions, 20.0, 0.0, window_s)
    return replace(found, **other)


def run(setting: Setting, policy: Policy, arrivals: Sequence[tuple[float, int, int]]) -> Outcome:
    return simulate(setting, policy, [Arrival(*each) for each in arrivals])


arrival_lists = st.lists(
    st.tuples(st.floats(0, 300), st.integers(1, 200), st.integers(1, 100)), max_size=60
).map(sorted)
fleets_of = st.lists(st.integers(1, 4), min_size=1, max_size=2)
policies = st.sampled_from(POLICIES)
numbers = st.integers(0, 5)
views = st.builds(
    RegionView,
    st.tuples(numbers, numbers, numbers, numbers),
    numbers,
    numbers,
    numbers,
    st.none() | st.floats(0, 900),
    st.floats(0, 1),
).filter(lambda view: view.machines > 0)


class TestCurve:
    def test_measured_sizes_are_met_and_lie_on_lines_between(self) -> None:
        assert CURVE.step_s(1) == pytest.approx(1 / 100 - 0.5 * 0.001)
        assert CURVE.step_j(4) == pytest.approx(4 * 0.012 - 4 * 0.5 * 0.003)
        assert CURVE.step_s(6) == pytest.approx((CURVE.step_s(4) + CURVE.step_s(8)) / 2)
        assert CURVE.power_w(1) == pytest.approx(CURVE.step_j(1) / CURVE.step_s(1))

    @pytest.mark.parametrize("batch", [0, 9])
    def test_nothing_is_said_beyond(self, batch: int) -> None:
        with pytest.raises(BenchError, match="from 1 to 8"):
            CURVE.step_s(batch)

    @pytest.mark.parametrize(
        ("name", "arm", "has_prompt"),
        [
            ("peers.json", "greenllm-int8", True),
            ("runners_135m.json", "openvino int8", False),
            ("techniques.json", "int8:off", False),
        ],
    )
    def test_results_that_are_here_are_read(self, name: str, arm: str, has_prompt: bool) -> None:
        curve = read_curve(json.loads((study.RESULTS / name).read_text(encoding="utf-8")), arm)
        assert [point.batch for point in curve.points] == [1, 8, 32]
        assert (curve.prompt is not None) == has_prompt
        assert (curve.start_s is None) == name.startswith("techniques")
        assert curve.methods == (None if "135m" in name else ("modelled:vcpu-specpower",))

    def test_a_boards_joules_and_the_processors_are_added(self) -> None:
        cell = {"tokens_per_s": 10.0, "gpu_joules_per_token": 2.0, "cpu_joules_per_token": 1.0}
        assert read_curve({"arms": {"a": {"1": cell}}}, "a").points == (Point(1, 10.0, 3.0),)

    def test_idle_power_is_what_total_joules_have_above_active_ones(self) -> None:
        cell = {"tokens_per_s": 50.0, "joules_per_token": 0.05, "active_joules_per_token": 0.04}
        assert idle_w({"arms": {"a": {"batches": {"1": cell}}}}, "a") == pytest.approx(0.5)
        with pytest.raises(BenchError, match="no active joules"):
            idle_w({"arms": {"a": {"batches": {"1": {"tokens_per_s": 1.0}}}}}, "a")


class TestMachine:
    def test_what_is_assumed_is_called_so(self) -> None:
        machine = make_machine(CURVE, Assumed(idle_w=0.7, start_s=9.0), 0.5, "nowhere")
        assert (machine.idle_w, machine.start_s) == (0.7, 9.0)
        assert machine.notes["idle_w"] == machine.notes["start_s"] == "assumed"
        assert MACHINE.notes["idle_w"] == "from nowhere"
        assert MACHINE.start_w == CURVE.power_w(1)

    def test_what_is_neither_measured_nor_assumed_is_refused(self) -> None:
        bare = replace(CURVE, prompt=None, prompt_share=0.0, start_s=None)
        with pytest.raises(BenchError, match="--assume idle_w=NUMBER"):
            make_machine(CURVE, Assumed(), None, "")
        with pytest.raises(BenchError, match="--assume start_s=NUMBER"):
            make_machine(bare, Assumed(), 0.5, "")
        with pytest.raises(BenchError, match="prompt_tokens_per_s"):
            make_machine(bare, Assumed(start_s=1.0), 0.5, "")
        machine = make_machine(bare, Assumed(start_s=1.0, prompt_tokens_per_s=500.0), 0.5, "")
        assert machine.prompt == PromptCost(0.002, bare.power_w(8) * 0.002)


class TestByHand:
    def test_one_request_on_one_machine_is_the_curve(self) -> None:
        outcome = run(fleet(1), Spread(), [(2.0, 100, 50)])
        takes_s = 100 * 0.001 + 50 * CURVE.step_s(1)
        assert outcome.latency_s[0] == pytest.approx(takes_s)
        assert outcome.first_s[0] == pytest.approx(0.1)
        assert outcome.request_j[0] == pytest.approx(100 * 0.003 + 50 * CURVE.step_j(1))
        assert outcome.joules["idle"] == pytest.approx((10 - takes_s) * 0.5)
        assert outcome.horizon_s == 10.0

    @pytest.mark.parametrize("count", [1, 4, 8])
    def test_the_measured_load_is_as_fast_as_it_was_measured(self, count: int) -> None:
        arrivals = [(0.0, 64, 128)] * count
        outcome = run(fleet(1, limit=8, window_s=0.1), Spread(), arrivals)
        point = next(point for point in CURVE.points if point.batch == count)
        tokens = 128 * count
        assert outcome.horizon_s == pytest.approx(tokens / point.tokens_per_s)
        assert outcome.total_j == pytest.approx(tokens * point.joules_per_token)

    def test_generation_stands_still_while_a_prompt_is_read(self) -> None:
        outcome = run(fleet(1), Spread(), [(0.0, 1, 10), (0.02, 500, 10)])
        alone_s = 0.001 + 10 * CURVE.step_s(1)
        both = outcome.latency_s[0] - alone_s - 0.5
        done = (0.02 - 0.001) / CURVE.step_s(1)
        assert both == pytest.approx((10 - done) * (CURVE.step_s(2) - CURVE.step_s(1)))

    def test_above_the_limit_requests_wait(self) -> None:
        outcome = run(fleet(1, limit=1), Spread(), [(0.0, 100, 10), (0.0, 100, 10)])
        takes_s = 0.1 + 10 * CURVE.step_s(1)
        assert list(outcome.latency_s) == pytest.approx([takes_s, 2 * takes_s])

    def test_a_machine_is_woken_and_sleeps_again(self) -> None:
        setting = fleet(2, limit=1, window_s=100.0)
        outcome = run(setting, Pack(), [(0.0, 1, 1)])
        # One serves, the place kept free is the other's, which sleeps after 20 s without work.
        assert (outcome.wakes, outcome.most_awake) == (1, 2)
        assert outcome.joules["start"] == pytest.approx(5.0 * CURVE.power_w(1))
        assert outcome.seconds["asleep"] == pytest.approx(100.0 - 20.0 - 0.001 - CURVE.step_s(1))

    def test_grams_are_the_hours_joules_at_the_hours_intensity(self) -> None:
        regions = (Region("here", 1, 0.0, grid("A", 100.0, 300.0)),)
        outcome = run(fleet(1, window_s=3600.0, regions=regions, start_s=1800.0), Spread(), [])
        assert outcome.hourly_j == ((900.0, 900.0),)
        grams = outcome.grams((regions[0].grid,), 1800.0)
        assert grams == pytest.approx(900 / 3.6e6 * 100 + 900 / 3.6e6 * 300)
        assert outcome.grams((None,), 0.0) is None

    def test_waiting_is_that_of_a_queue_with_one_server(self) -> None:
        source, at_s, arrivals = random.Random(3), 0.0, []
        takes_s, load = 0.1 + 10 * CURVE.step_s(1), 0.7
        for _ in range(20_000):
            at_s += source.expovariate(load / takes_s)
            arrivals.append((at_s, 100, 10))
        outcome = run(fleet(1, limit=1, window_s=at_s), Spread(), arrivals)
        wait_s = sum(outcome.latency_s) / len(arrivals) - takes_s
        assert wait_s == pytest.approx(load / (2 * (1 - load)) * takes_s, rel=0.1)
        busy_s = outcome.seconds["prompt"] + outcome.seconds["generation"]
        assert busy_s / outcome.horizon_s == pytest.approx(load, rel=0.03)

    def test_the_cleaner_region_is_chosen(self) -> None:
        arrivals = [(float(second), 50, 50) for second in range(200)]
        setting = fleet(2, 2, window_s=200.0)
        near, clean = (run(setting, policy, arrivals) for policy in (Pack(), Carbon()))
        grams = [one.grams(setting.grids, 0.0) for one in (near, clean)]
        assert near.served == (200, 0)
        assert clean.served == (0, 200)
        assert grams[0] is not None
        assert grams[1] is not None
        assert grams[1] < 0.5 * grams[0]


class TestConservation:
    @settings(max_examples=60)
    @given(arrival_lists, fleets_of, policies, st.integers(1, 8), st.floats(0, 8000))
    def test_joules_seconds_and_work_add_up(
        self,
        arrivals: list[tuple[float, int, int]],
        machines: list[int],
        policy: Policy,
        limit: int,
        start_s: float,
    ) -> None:
        setting = fleet(*machines, limit=limit, window_s=200.0, start_s=start_s)
        outcome = run(setting, policy, arrivals)
        total_j = sum(map(sum, outcome.hourly_j))
        assert outcome.total_j == pytest.approx(total_j, rel=1e-9)
        assert sum(outcome.seconds.values()) == pytest.approx(
            outcome.horizon_s * sum(machines), rel=1e-9
        )
        assert sum(outcome.served) == len(arrivals)
        assert outcome.tokens == sum(tokens for _, _, tokens in arrivals)
        prompt_s = sum(prompt for _, prompt, _ in arrivals) * 0.001
        assert outcome.seconds["prompt"] == pytest.approx(prompt_s)
        assert min(outcome.joules.values()) >= 0

    @settings(max_examples=60)
    @given(arrival_lists, fleets_of, policies, st.integers(1, 8))
    def test_nobody_is_served_faster_than_alone(
        self,
        arrivals: list[tuple[float, int, int]],
        machines: list[int],
        policy: Policy,
        limit: int,
    ) -> None:
        outcome = run(fleet(*machines, limit=limit), policy, arrivals)
        for number, (at_s, prompt_tokens, tokens) in enumerate(arrivals):
            latency_s, first_s = outcome.latency_s[number], outcome.first_s[number]
            assert first_s >= prompt_tokens * 0.001 - 1e-9
            assert latency_s - first_s >= tokens * CURVE.step_s(1) - 1e-6
            assert at_s + latency_s <= outcome.horizon_s + 0.2 + 1e-9
            assert outcome.request_j[number] > prompt_tokens * 0.003

    @settings(max_examples=40)
    @given(arrival_lists, st.integers(1, 6), st.integers(1, 8))
    def test_packing_never_keeps_more_awake(
        self, arrivals: list[tuple[float, int, int]], machines: int, limit: int
    ) -> None:
        setting = fleet(machines, limit=limit, window_s=400.0)
        packed, spread = (run(setting, policy, arrivals) for policy in (Pack(), Spread()))
        assert packed.most_awake <= spread.most_awake == machines
        assert packed.seconds["asleep"] >= spread.seconds["asleep"] == 0


class TestPolicies:
    @given(st.lists(views, min_size=1, max_size=3), policies)
    def test_decisions_depend_on_the_view_alone_and_can_be_carried_out(
        self, fleet: list[RegionView], policy: Policy
    ) -> None:
        if isinstance(policy, Spread) and not any(sum(v.awake) + v.starting for v in fleet):
            return  # it has all awake
        before = [asdict(view) for view in fleet]
        placement = policy.place(fleet)
        assert placement == policy.place(fleet)
        assert [asdict(view) for view in fleet] == before
        if placement.load is not None:
            view = fleet[placement.region]
            assert placement.load < view.limit
            assert view.awake[placement.load] > 0
        if placement.wake is not None:
            assert fleet[placement.wake].asleep > 0
        needed = policy.awake_at_start(fleet, 3)
        assert all(0 <= count <= view.machines for count, view in zip(needed, fleet, strict=True))

    def test_spread_takes_the_least_loaded(self) -> None:
        views = [RegionView((0, 1, 1), 0, 0, 0, 1.0, 0.0), RegionView((1, 0, 0), 0, 0, 0, 9.0, 0.1)]
        assert Spread().place(views) == Placement(1, 0)
        full = [replace(view, awake=(0, 0, 2), waiting=2 - i) for i, view in enumerate(views)]
        assert Spread().place(full) == Placement(1, None)

    def test_pack_takes_the_fullest_and_wakes_ahead(self) -> None:
        view = RegionView((1, 2, 3, 4), 0, 1, 0, None, 0.0)
        assert Pack().place([view]) == Placement(0, 2)
        short = replace(view, awake=(0, 0, 1, 4))
        assert Pack().place([short]) == Placement(0, 2, wake=0)
        assert Pack().place([replace(short, awake=(0, 0, 0, 4))]) == Placement(0, None, wake=0)
        assert Pack().place([replace(short, starting=1)]) == Placement(0, 2)

    def test_who_may_sleep(self) -> None:
        views = [RegionView((2, 0, 0), 0, 0, 0, 5.0, 0.0), RegionView((1, 0, 0), 0, 0, 0, 1.0, 0.1)]
        assert Pack().may_sleep(views, 0)
        assert Pack().may_sleep(views, 1)
        assert not Carbon().may_sleep(views, 1)
        assert not Spread().may_sleep(views, 0)

    def test_carbon_goes_where_it_is_clean_and_near_and_falls_back(self) -> None:
        dirty = RegionView((1, 0), 0, 1, 0, 400.0, 0.0)
        clean = RegionView((0, 0), 0, 2, 0, 50.0, 0.3)
        unknown = RegionView((1, 0), 0, 0, 0, None, 0.0)
        assert Carbon().ranking([dirty, clean, unknown]) == [1, 0, 2]
        assert Carbon().place([dirty, clean]) == Placement(0, 0, wake=1)
        assert Carbon(max_detour_s=0.1).place([dirty, clean]) == Placement(0, 0, wake=0)
        assert Carbon(max_detour_s=0.1).ranking([clean]) == [0]

    @pytest.mark.parametrize("placement", [Placement(0, 3), Placement(0, 9), Placement(0, 0, 0)])
    def test_what_is_not_there_cannot_be_chosen(self, placement: Placement) -> None:
        class Wrong(Spread):
            def place(self, fleet: Sequence[RegionView]) -> Placement:
                return placement

        with pytest.raises(ValueError, match="the policy spread"):
            run(fleet(1), Wrong(), [(0.0, 1, 1)])


class TestSetting:
    def test_arrivals_have_to_be_in_order(self) -> None:
        with pytest.raises(ValueError, match="time went back"):
            run(fleet(1), Spread(), [(5.0, 1, 1), (1.0, 1, 1)])


class TestTrace:
    shots = (Shot(0, 10, 5, 0.0), Shot(1, 20, 6, 4.0), Shot(2, 30, 7, 6.0))
    trace = Trace(shots, 0.0, "made up")

    def test_one_copy_is_the_trace_and_goes_round(self) -> None:
        assert self.trace.period_s == 9.0
        found = self.trace.arrivals(1.0, 14.0, seed=1)
        assert [arrival.at_s for arrival in found] == [0.0, 4.0, 6.0, 9.0, 13.0]
        assert [arrival.tokens for arrival in found] == [5, 6, 7, 5, 6]

    @settings(max_examples=20)
    @given(st.floats(0.1, 5), st.integers(0, 9))
    def test_load_grows_with_copies_and_repeats_with_the_seed(
        self, copies: float, seed: int
    ) -> None:
        found = self.trace.arrivals(copies, 9_000.0, seed)
        assert len(found) == pytest.approx(copies * 3000, rel=0.2)
        assert found == self.trace.arrivals(copies, 9_000.0, seed)
        times = [arrival.at_s for arrival in found]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] < 9_000

    def test_demand_is_machine_seconds_by_seconds(self) -> None:
        seconds = 60 * 0.001 + 18 * CURVE.step_s(4) / 4
        assert self.trace.demand(MACHINE, 4) == pytest.approx(seconds / 9)

    def test_a_file_is_read_at_its_own_time(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.csv"
        path.write_text(TRACE + "2023-11-16 18:00:30.5000000,40,20\n", encoding="utf-8")
        trace, factor = load_trace(path, 30)
        assert (trace.start_s, trace.shots[1].at_s, factor) == (1700157600.0, 30.5, 0.5)
        assert (trace.shots[1].prompt_tokens, trace.shots[1].max_tokens) == (20, 10)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("noon,1,1", "line 3 of the trace .*correct it or take it out"),
            ("2023-11-16 18:00:30,0,1", "line 3 of the trace .*lengths 0, 1"),
            ("2023-11-16 17:00:30,1,1", "line 3 of the trace .*sort the trace"),
        ],
    )
    def test_a_broken_line_is_refused_with_its_number(
        self, tmp_path: Path, line: str, message: str
    ) -> None:
        path = tmp_path / "trace.csv"
        path.write_text(f"{TRACE}{line}\n", encoding="utf-8")
        with pytest.raises(TraceError, match=message):
            load_trace(path, 100)


class TestRegions:
    def lines(self, *rows: str) -> list[str]:
        return [HOUR, "2023-01-01 00:00:00,Spain,ES,100", *rows]

    def test_hours_are_read(self) -> None:
        found = read_region(self.lines("2023-01-01 01:00:00,Spain,ES,120.5"), "file")
        start_s = 1672531200.0
        assert (found.zone, found.hours, found.start_s) == ("ES", (100.0, 120.5), start_s)
        assert found.g_per_kwh(start_s + 3599) == 100
        assert found.g_per_kwh(start_s + 3600) == 120.5
        for at_s in (start_s - 1, start_s + 7200):
            with pytest.raises(BenchError, match="ES has no intensity for"):
                found.g_per_kwh(at_s)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("2023-01-01 01:00:00,Spain,ES,", "line 3 of file: .*correct it"),
            ("2023-01-01 01:00:00,Spain,ES,-1", "line 3 of file: -1.0 g/kWh"),
            ("2023-01-01 01:00:00,Spain,ES,nan", "line 3 of file: nan"),
            ("one o'clock,Spain,ES,1", "line 3 of file: .*needs an hour"),
            ("2023-01-01 01:00:00", "line 3 of file"),
            ("2023-01-01 02:00:00,Spain,ES,1", "line 3 of file: .*put in what is missing"),
            ("2023-01-01 00:00:00,Spain,ES,1", "line 3 of file: .*there twice"),
            ("2023-01-01 01:00:00,Portugal,PT,1", "line 3 of file: zone PT after ES"),
        ],
    )
    def test_a_broken_line_is_refused_with_its_number(self, row: str, message: str) -> None:
        with pytest.raises(BenchError, match=message):
            read_region(self.lines(row), "file")

    def test_years_of_a_zone_are_joined(self, tmp_path: Path) -> None:
        first, second = tmp_path / "1.csv", tmp_path / "2.csv"
        first.write_text("\n".join(self.lines()), encoding="utf-8")
        second.write_text(f"{HOUR}\n2023-01-01 01:00:00,Spain,ES,7\n", encoding="utf-8")
        assert load_regions([second, first])[0].hours == (100.0, 7.0)
        with pytest.raises(BenchError, match="do not follow each other"):
            load_regions([first, first])
        with pytest.raises(BenchError, match="--regions"):
            load_regions([tmp_path / "none.csv"])


def scenario(machine: Machine = MACHINE, *grids: HourlyIntensity) -> Scenario:
    shots = tuple(Shot(i, 50, 40, i * 0.5) for i in range(200))
    assumed = Assumed(requests=300)
    ticks = iter(range(1000))
    return Scenario(
        *(machine, Trace(shots, 0.0, "made up"), grids, assumed, 0.2, 8),
        clock=lambda: float(next(ticks)),
        tell=lambda text: None,
    )


class TestStudies:
    def test_all_rows_of_a_study_have_the_same_requests(self) -> None:
        for rows in (replicas(scenario()), limits(scenario())):
            assert len({row["requests"] for row in rows}) == 1
            assert all(row["grams"] is None and row["run_s"] == 1.0 for row in rows)
        assert [row["limit"] for row in limits(scenario())] == [1, 2, 4, 8] * 2
        assert [row["machines"] for row in replicas(scenario())] == [4, 5, 6, 8, 12, 20, 20]

    def test_more_machines_awake_cost_more_and_answer_sooner(self) -> None:
        rows = replicas(scenario())[:-1]
        assert rows[0]["joules_per_token"] < rows[-1]["joules_per_token"]
        assert rows[0]["p95_s"] > rows[-1]["p95_s"]

    def test_fleets_share_machines_among_regions(self) -> None:
        grids = (grid("A", 300.0), grid("B", 100.0))
        rows = list(fleets(scenario(MACHINE, *grids), [1, 5]))
        named = [(row["machines"], row["policy"]) for row in rows]
        assert named == [(1, "spread"), (1, "pack"), (5, "spread"), (5, "pack"), (5, "carbon")]
        assert [region.machines for region in scenario(MACHINE, *grids).regions(5)] == [3, 2]
        assert all(row["grams"] > 0 for row in rows)

    def test_regions_that_are_too_far_are_left_alone(self) -> None:
        asked = scenario(MACHINE, grid("A", 300.0), grid("B", 100.0))
        near = replace(asked, assumed=replace(asked.assumed, max_detour_s=0.1))
        served = [list(fleets(one, [4]))[-1]["served"] for one in (asked, near)]
        assert [counts[1] > 0 for counts in served] == [True, False]


class TestCommand:
    def test_one_run_from_files_to_a_result(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = [f"2023-11-16 18:{minute:02}:00,40,20" for minute in range(1, 60)]
        path = tmp_path / "trace.csv"
        path.write_text(TRACE + "\n".join(lines), encoding="utf-8")
        monkeypatch.setattr(study, "RESULTS", tmp_path)
        monkeypatch.setattr("sys.argv", ["placement", "--trace", str(path)])
        main(path, nodes="1,3", assume=["requests=2000"], name="small")
        result = json.loads((tmp_path / "small.json").read_text(encoding="utf-8"))
        assert result["command"] == "python -m evals.studies.placement --trace trace.csv"
        assert set(result["studies"]) == {"replicas", "limits", "fleets"}
        assert result["simulated"]
        assert "greenllm-int8" in (tmp_path / "small.md").read_text(encoding="utf-8")
        assert (tmp_path / "small.svg").exists()

    def test_arms_can_be_of_other_results(self) -> None:
        assert split_arm("int8", Path("a.json")) == (Path("a.json"), "int8")
        assert split_arm("x/b.json:none:off", Path("a.json")) == (Path("x/b.json"), "none:off")
        with pytest.raises(BenchError, match="which arm"):
            split_arm("x/b.json", Path("a.json"))
