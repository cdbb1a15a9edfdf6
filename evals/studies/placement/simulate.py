"""A fleet, event by event: arrivals, ends of prompts and answers, wakes, sleep, full hours.

Contract: the same setting, policy and arrivals give the same outcome. Every request is served once
and to the end; time never goes back. An event costs O(log n) and one look of the policy, which does
not depend on the number of machines. The run ends with the last answer, or with its window.

Not covered: networks beyond a fixed detour, prefix caches, failures, adapters, requests that move.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from evals.studies.placement.node import ASLEEP, IDLE, PHASES, STARTING, Job, Node, Rates
from evals.studies.placement.outcome import Outcome
from evals.studies.placement.policies import Policy, RegionView
from evals.studies.placement.setting import Region, Setting
from evals.studies.placement.trace import Arrival
from greenllm.energy.units import S_PER_HOUR


@dataclass(slots=True)
class _Site:
    """A region while it runs; machines awake by how many requests they have in hand."""

    region: Region
    nodes: list[Node]
    awake: list[dict[int, Node]]
    asleep: list[Node]
    g_per_kwh: float | None = None
    queue: deque[Job] = field(default_factory=deque)
    starting: int = 0
    served: int = 0
    hourly_j: list[float] = field(default_factory=list)
    seen: RegionView | None = None

    def view(self) -> RegionView:
        """As the policy sees it; made anew after a change."""
        if self.seen is None:
            self.seen = RegionView(
                tuple(map(len, self.awake)),
                self.starting,
                len(self.asleep),
                len(self.queue),
                self.g_per_kwh,
                self.region.detour_s,
            )
        return self.seen


def simulate(setting: Setting, policy: Policy, arrivals: Sequence[Arrival]) -> Outcome:
    """Run the arrivals, in order of time, through the fleet.

    Raises:
        BenchError: the batch limit was not measured, or an hour's intensity is not there.
        ValueError: arrivals are not in order, or the policy chose what is not there.
    """
    return _Run(setting, policy, arrivals).run()


class _Run:
    """The state of a run."""

    def __init__(self, setting: Setting, policy: Policy, arrivals: Sequence[Arrival]) -> None:
        self._setting, self._policy, self._arrivals = setting, policy, arrivals
        self._rates = Rates.of(setting.machine, setting.limit)
        self._events: list[tuple[float, int, int, Node]] = []
        self._now_s, self._last_end_s, self._count, self._open = 0.0, 0.0, 0, 0
        self._wakes = self._awake = self._most_awake = self._tokens = 0
        self._latency_s, self._first_s, self._request_j = (
            array("d", bytes(8 * len(arrivals))) for _ in range(3)
        )
        self._sites = [self._make_site(place) for place in range(len(setting.regions))]
        self._next_hour_s = S_PER_HOUR - setting.start_s % S_PER_HOUR
        self._look_at_grids()
        self._wake_at_start()

    def _make_site(self, place: int) -> _Site:
        region = self._setting.regions[place]
        nodes = [Node(number, place, self._rates) for number in range(region.machines)]
        awake: list[dict[int, Node]] = [{} for _ in range(self._setting.limit + 1)]
        return _Site(region, nodes, awake, list(reversed(nodes)))

    def _wake_at_start(self) -> None:
        prompt_tokens = sum(arrival.prompt_tokens for arrival in self._arrivals)
        tokens = sum(arrival.tokens for arrival in self._arrivals)
        busy_s = self._setting.machine.busy_s(prompt_tokens, tokens, self._setting.limit)
        needed = math.ceil(busy_s / self._setting.window_s)
        counts = self._policy.awake_at_start([site.view() for site in self._sites], needed)
        for site, count in zip(self._sites, counts, strict=True):
            for _ in range(count):
                self._rest(site, site.asleep.pop())
        self._awake = self._most_awake = sum(counts)

    def run(self) -> Outcome:
        """Until everything has ended."""
        arrivals, events, number = self._arrivals, self._events, 0
        while True:
            at_s = arrivals[number].at_s if number < len(arrivals) else math.inf
            event_s = events[0][0] if events else math.inf
            now_s = min(at_s, event_s, self._next_hour_s)
            if at_s == math.inf and not self._open and now_s >= self._setting.window_s:
                break
            if now_s < self._now_s:
                raise ValueError(f"time went back from {self._now_s} to {now_s} s")
            self._now_s = now_s
            if now_s == self._next_hour_s:
                self._end_hour()
            elif now_s == at_s:
                self._arrive(number, arrivals[number])
                number += 1
            else:
                _, _, version, node = heappop(events)
                if version == node.version:
                    self._happen(node)
        return self._outcome(max(self._setting.window_s, self._last_end_s))

    def _arrive(self, number: int, arrival: Arrival) -> None:
        placement = self._policy.place([site.view() for site in self._sites])
        site = self._sites[placement.region]
        job = Job(number, arrival.at_s, arrival.prompt_tokens, arrival.tokens)
        job.detour_s = site.region.detour_s
        self._open += 1
        if placement.load is None:
            site.queue.append(job)
            site.seen = None
        else:
            if placement.load >= self._setting.limit or not site.awake[placement.load]:
                raise ValueError(f"the policy {self._policy.name} chose {placement}: none there")
            self._give(site, next(reversed(site.awake[placement.load].values())), job)
        if placement.wake is not None:
            self._wake(self._sites[placement.wake])

    def _give(self, site: _Site, node: Node, job: Job) -> None:
        del site.awake[node.active][node.number]
        node.add(job, self._now_s)
        site.awake[node.active][node.number] = node
        site.seen = None
        self._watch(node)

    def _watch(self, node: Node) -> None:
        node.version += 1
        if node.until_s < math.inf:
            self._count += 1
            heappush(self._events, (node.until_s, self._count, node.version, node))

    def _happen(self, node: Node) -> None:
        """A machine's own next event."""
        site = self._sites[node.region]
        if node.phase == STARTING:
            site.starting -= 1
            self._rest(site, node)
            self._refill(site, node)
        elif node.phase == IDLE:
            self._maybe_sleep(site, node)
        else:
            before = node.active
            for job in node.advance(self._now_s):
                self._end(site, job)
            if node.active == before:
                self._watch(node)
                return
            del site.awake[before][node.number]
            self._rest(site, node)
            self._refill(site, node)

    def _rest(self, site: _Site, node: Node) -> None:
        """Put a machine among those awake; one without work may sleep after a time."""
        if not node.active:
            node.enter(IDLE, self._now_s, self._now_s + self._setting.sleep_after_s)
        site.awake[node.active][node.number] = node
        site.seen = None
        self._watch(node)

    def _refill(self, site: _Site, node: Node) -> None:
        while site.queue and node.active < self._setting.limit:
            self._give(site, node, site.queue.popleft())

    def _maybe_sleep(self, site: _Site, node: Node) -> None:
        if not self._policy.may_sleep([each.view() for each in self._sites], node.region):
            node.until_s = self._now_s + self._setting.sleep_after_s
            self._watch(node)
            return
        del site.awake[0][node.number]
        node.enter(ASLEEP, self._now_s)
        site.asleep.append(node)
        site.seen = None
        self._awake -= 1

    def _wake(self, site: _Site) -> None:
        if not site.asleep:
            raise ValueError(f"the policy {self._policy.name} wakes where nobody sleeps")
        node = site.asleep.pop()
        node.enter(STARTING, self._now_s, self._now_s + self._rates.start_s)
        site.starting += 1
        site.seen = None
        self._wakes += 1
        self._awake += 1
        self._most_awake = max(self._most_awake, self._awake)
        self._watch(node)

    def _end(self, site: _Site, job: Job) -> None:
        self._open -= 1
        self._last_end_s = self._now_s
        site.served += 1
        self._tokens += job.tokens
        self._latency_s[job.number] = self._now_s - job.at_s + job.detour_s
        self._first_s[job.number] = job.prompt_done_s - job.at_s + job.detour_s
        self._request_j[job.number] = job.joules

    def _end_hour(self) -> None:
        self._book_hour(self._now_s)
        self._next_hour_s += S_PER_HOUR
        self._look_at_grids()

    def _book_hour(self, at_s: float) -> None:
        """Joules since the hour before."""
        for site in self._sites:
            for node in site.nodes:
                node.settle(at_s)
            total_j = math.fsum(node.joules() for node in site.nodes)
            site.hourly_j.append(total_j - math.fsum(site.hourly_j))

    def _look_at_grids(self) -> None:
        for site in self._sites:
            grid = site.region.grid
            at_s = self._setting.start_s + self._now_s
            site.g_per_kwh = None if grid is None else grid.g_per_kwh(at_s)
            site.seen = None

    def _outcome(self, horizon_s: float) -> Outcome:
        self._book_hour(horizon_s)
        nodes = [node for site in self._sites for node in site.nodes]
        seconds = {
            name: math.fsum(node.seconds[phase] for node in nodes)
            for phase, name in enumerate(PHASES)
        }
        rates = self._rates
        joules = {
            "requests": math.fsum(self._request_j),
            "idle": seconds["idle"] * rates.idle_w,
            "sleep": seconds["asleep"] * rates.sleep_w,
            "start": seconds["starting"] * rates.start_w,
        }
        return Outcome(
            horizon_s,
            len(nodes),
            joules,
            seconds,
            tuple(tuple(site.hourly_j) for site in self._sites),
            tuple(site.served for site in self._sites),
            self._wakes,
            self._most_awake,
            self._tokens,
            self._latency_s,
            self._first_s,
            self._request_j,
        )
