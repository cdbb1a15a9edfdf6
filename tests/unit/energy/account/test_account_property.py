"""Conservation: whatever happens, every joule is booked once, and none is negative."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.energy.account.idle import IdlePower
from greenllm.energy.account.totals import CONSERVATION_TOLERANCE
from tests.unit.energy.rig import make_rig

DOMAINS = ("cpu", "dram", "gpu")
seeds = st.integers(0, 2**32)


class Traffic:
    """Random requests, steps, counters and failures; checks the books as it goes."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        known_w = {"cpu": self.chance.uniform(0, 5), "gpu": self.chance.uniform(0, 50)}
        self.rig = make_rig(
            idle_w=known_w, period_s=self.chance.choice([0.0, 0.02, 0.1]), domains=DOMAINS
        )
        if self.chance.random() < 0.5:
            self.rig.meter.idle_w = None
            self.rig.account.learnt.idle = IdlePower(None)
        if self.chance.random() < 0.7:
            self.rig.meter.own_cpu_s = self.rig.meter.machine_cpu_s = 0.0
            self.rig.drain()
        self.first_j = self.rig.meter.read().total_j
        self.running: dict[str, int] = {}
        self.num_opened = 0
        self._before = replace(self.rig.totals)

    def run(self, num_events: int) -> None:
        events = (self._open, self._step, self._step, self._step, self._finish, self._rest)
        for _ in range(num_events):
            self.rig.meter.failing = self.chance.random() < 0.15
            self.chance.choice(events)()
            self.rig.settle()
            self._check()

    def close(self) -> None:
        """End what runs, and read the meter a last time."""
        for name in list(self.running):
            self._end(name)
        self.rig.meter.failing = False
        for _ in range(2):
            self.rig.spend(6.0, cpu=0.5, dram=0.5, gpu=0.5)
            self.rig.drain()
            self._check()

    def _spend(self, seconds: float) -> None:
        spent = {d: self.chance.expovariate(1 / (seconds * 20)) for d in DOMAINS}
        if self.chance.random() < 0.1:
            spent = {}
        own_s, others_s = self.chance.uniform(0, seconds), self.chance.choice([0.0, seconds * 2])
        train_s = self.chance.choice([0.0, seconds])
        self.rig.spend(seconds, own_s=own_s, others_s=others_s, train_s=train_s, **spent)

    def _open(self) -> None:
        name = f"r{self.num_opened}"
        self.num_opened += 1
        self.rig.open(name, prompt=self.chance.randint(1, 40))
        self.running[name] = 0

    def _step(self) -> None:
        names = [name for name in self.running if self.chance.random() < 0.8]
        sizes = {name: self.chance.choice([1, 1, 1, 16]) for name in names}
        seconds = self.chance.choice([0.001, 0.02, 0.3, 2.0])
        self._spend(seconds)
        parts = [(name, self.running[name], sizes[name]) for name in names]
        self.rig.account.charge(self.rig.batch(*parts), seconds)
        for name in names:
            self.running[name] += sizes[name]

    def _finish(self) -> None:
        if self.running:
            self._end(self.chance.choice(list(self.running)))

    def _end(self, name: str) -> None:
        del self.running[name]
        self.rig.finish(name, outcome=self.chance.choice(["completed", "aborted", "failed"]))

    def _rest(self) -> None:
        self._spend(self.chance.choice([0.01, 0.5, 30.0]))

    def _check(self) -> None:
        totals, before = self.rig.totals, self._before
        assert totals.residual <= CONSERVATION_TOLERANCE
        assert self.rig.account.num_violations == 0
        for name in ("meter_j", "load_j", "idle_j", "unattributed_j", "requests_j", "train_j"):
            assert getattr(totals, name) >= getattr(before, name), f"{name} fell"
        assert totals.open_j >= -1e-9 * max(1.0, totals.meter_j)
        self._before = replace(totals)


@settings(max_examples=70)
@given(seeds)
def test_every_joule_is_booked_once(seed: int) -> None:
    traffic = Traffic(seed)
    traffic.run(40)
    traffic.close()
    rig, totals = traffic.rig, traffic.rig.totals
    metered_j = rig.meter.read().total_j - traffic.first_j
    assert totals.meter_j == pytest.approx(metered_j, rel=1e-9)
    receipts = rig.finals.values()
    assert len(rig.receipts) == traffic.num_opened
    assert rig.account.if_lost()[0] == []
    billed_j = sum(receipt.total_j for receipt in receipts)
    assert totals.requests_j == pytest.approx(billed_j, rel=1e-9, abs=1e-9)
    booked_j = billed_j + totals.load_j + totals.idle_j + totals.unattributed_j
    booked_j += totals.open_j + totals.train_j
    assert booked_j == pytest.approx(metered_j, rel=1e-6)
    assert totals.open_j == pytest.approx(0, abs=1e-9 * metered_j)
    spent = rig.account.spent_j
    assert sum(spent.values()) == pytest.approx(billed_j, rel=1e-9, abs=1e-9)
    assert min(spent.values(), default=0.0) >= 0
    for receipt in receipts:
        parts = [receipt.prefill_j, receipt.decode_j, receipt.idle_j, *receipt.domains_j.values()]
        assert min(parts) >= 0
        assert receipt.prefill_j + receipt.decode_j == pytest.approx(receipt.active_j)
        domains_j = sum(receipt.domains_j.values())
        assert domains_j == pytest.approx(receipt.total_j, rel=1e-9, abs=1e-9)
        assert receipt.uncertainty >= 0


@settings(max_examples=25)
@given(seeds)
def test_the_books_hold_while_requests_are_open(seed: int) -> None:
    traffic = Traffic(seed)
    traffic.run(30)
    totals, finals = traffic.rig.totals, traffic.rig.finals.values()
    billed_j = sum(receipt.total_j for receipt in finals)
    others_j = totals.load_j + totals.idle_j + totals.unattributed_j + totals.open_j
    others_j += totals.train_j
    assert billed_j + others_j == pytest.approx(totals.meter_j, rel=1e-6, abs=1e-9)


@settings(max_examples=40)
@given(seeds)
def test_what_would_be_lost_at_any_moment_adds_up_to_the_meter(seed: int) -> None:
    traffic = Traffic(seed)
    for _ in range(8):
        traffic.run(4)
        lost, totals = traffic.rig.account.if_lost()
        named = {receipt.request_id for receipt in lost}
        assert len(named) == len(lost)
        assert set(traffic.running) <= named
        finals = [*traffic.rig.finals.values(), *lost]
        for receipt in lost:
            # What a client has had an answer to, with a provisional receipt, is not lost.
            answer = traffic.rig.receipts.get(receipt.request_id)
            assert receipt.outcome == ("lost" if answer is None else answer.outcome)
        known_j = [receipt.total_j for receipt in finals if receipt.status == "final"]
        assert totals.requests_j == pytest.approx(sum(known_j), rel=1e-9, abs=1e-9)
        if all(receipt.status == "final" for receipt in lost):
            assert totals.open_j == pytest.approx(0, abs=1e-9)
        assert totals.residual <= CONSERVATION_TOLERANCE
    traffic.close()
    assert traffic.rig.account.if_lost()[0] == []


def _serve(seed: int, *, read_between: bool, order: list[int] | None = None) -> dict[str, float]:
    """Steps of the same power and width, so that windows tell no more than one of them would."""
    chance = random.Random(seed)
    rig = make_rig(idle_w={"cpu": 3.0}, period_s=100.0)
    names = [f"r{i}" for i in range(5)]
    rig.open(*(names if order is None else [names[i] for i in order]))
    for step in range(6):
        parts = [(name, step * 8, chance.choice([1, 4, 8])) for name in names[:4]]
        parts.append((names[4], step * 8, 40 - sum(size for _, _, size in parts)))
        if order is not None:
            parts = sorted(parts, key=lambda part: order.index(names.index(part[0])))
        rig.spend(0.1, cpu=2.0)
        rig.account.charge(rig.batch(*parts), 0.1)
        if read_between:
            rig.drain()
    rig.finish(*names)
    rig.spend(0.0)
    rig.drain()
    return {name: rig.finals[name].total_j for name in names}


@settings(max_examples=15)
@given(seeds)
def test_two_windows_charge_what_one_window_of_the_same_work_does(seed: int) -> None:
    once = _serve(seed, read_between=False)
    often = _serve(seed, read_between=True)
    assert often == pytest.approx(once, rel=1e-6)


@settings(max_examples=15)
@given(seeds, st.permutations(range(5)))
def test_shares_do_not_depend_on_the_order_of_requests(seed: int, order: list[int]) -> None:
    assert _serve(seed, read_between=False, order=order) == pytest.approx(
        _serve(seed, read_between=False), rel=1e-9
    )


def test_a_batch_costs_what_the_meter_says_however_it_is_composed() -> None:
    """Batch invariance: the sum is the meter's, for every way to divide 12 tokens."""
    for sizes in itertools.chain([(12,), (6, 6), (1, 11), (4, 4, 4)], [(1,) * 12]):
        rig = make_rig(idle_w={"cpu": 1.0})
        names = [f"r{i}" for i in range(len(sizes))]
        rig.open(*names)
        rig.step(*((name, 0, size) for name, size in zip(names, sizes, strict=True)), cpu=9.0)
        rig.finish(*names)
        assert sum(receipt.total_j for receipt in rig.settle()) == pytest.approx(9.0)
