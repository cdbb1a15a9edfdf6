"""The account: every joule the meter counts goes to a request, to idle, to load or to nobody.

Each domain's time is cut into windows by the ticks of its counter. The active energy of a window is
shared out among the requests whose work lies in it, and the idle energy of the time in which their
steps ran; the rest of the idle energy, and windows without work, go to `idle` (or to `load` until
serving starts). What other processes on the machine caused goes to `unattributed`, or to `train`
where a fine-tuning job of this server did. After every window

    load + idle + training + unattributed + finished requests + open requests = meter delta

is checked to 1e-6. A request is `final` once every counter has ticked past its work. When one does
not for `receipt_wait_s`, a `provisional` receipt with the predicted joules goes out first; a later
tick makes it final. After `_GIVE_UP_AFTER_S` without one the work so far is given up: its requests
stay provisional, and the energy of the gap is `unattributed`. So it is where the meter itself says
that it does not know what it counted, or that the machine stood still.

Not covered: training on the GPU that serves, which cannot be told apart; spreading a day's idle
energy over requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from greenllm.core import Batch, Chunk, DraftPass, Phase, Request, Sample
from greenllm.energy.account.attribution import Work, split, total_work
from greenllm.energy.account.bill import Bill, Share, TokenCounts
from greenllm.energy.account.learnt import Learnt
from greenllm.energy.account.tally import Key, WindowTally
from greenllm.energy.account.timeline import Timeline
from greenllm.energy.account.totals import CONSERVATION_TOLERANCE, Label, Totals
from greenllm.energy.account.window import DomainCounter, DomainWindow
from greenllm.energy.meters.protocol import Meter, Reading, SensorError
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.shape import ModelShape

log = logging.getLogger(__name__)

_LONGEST_WINDOW_S = 0.1
_GIVE_UP_AFTER_S = 60.0
_SHORTEST_LOOK_S = 0.1
_RETRY_S = 0.05
_FINALISE_EVERY_S = 1.0
_REHEARSED_PERIODS = 3
_REST_S = 0.5
_TICKING_S = 0.005
_STRETCHES_PER_TICK = 20


class Account:
    """Charges steps to requests against one meter. Used by one thread."""

    def __init__(
        self,
        meter: Meter,
        shape: ModelShape,
        *,
        clock: Callable[[], float],
        receipt_wait_s: float = 0.15,
        first: Reading | None = None,
        needs: Iterable[str] = (),
    ) -> None:
        """Open the books at the reading `first`, or now.

        Without the joules of the domains that it `needs`, such as those of the GPU that the model
        runs on, a request has none at all.
        """
        self.meter = meter
        self.learnt = Learnt(meter, shape)
        self.totals = Totals()
        self.published = Totals()
        self.spent_j: dict[Label, float] = {}
        self.num_sensor_errors = 0
        self.num_violations = 0
        self.num_counter_faults = 0
        self._clock = clock
        self._receipt_wait_s = receipt_wait_s
        self._needs = frozenset(needs)
        self._bills: dict[str, Bill] = {}
        self._num_closing = 0
        self._serving_s = float("inf")
        ticks = meter.period_s >= _TICKING_S
        resolution_s = meter.period_s / _STRETCHES_PER_TICK if ticks else float("inf")
        self._timeline = Timeline(self.learnt.tally, resolution_s)
        self._look_every_s = max(meter.period_s, meter.lag_s, _LONGEST_WINDOW_S)
        self._last = first or meter.read()
        self._counters = {d: DomainCounter.begin(d, self._last) for d in self._last.joules}
        self._tried_s = self._last.at_s
        self._forget(self._last)

    def start_serving(self) -> None:
        """Book everything so far as load, also what no counter has counted yet."""
        self._look()
        self._serving_s = self._tried_s

    def open(self, request: Request) -> None:
        """Start a bill. Energy until now belongs to whoever was there before."""
        if not self._bills:
            self._look()
        self._bills[request.request_id] = Bill(request, self._clock())

    def charge(
        self,
        batch: Batch,
        duration_s: float,
        samples: Sequence[Sample] = (),
        *,
        ago_s: float = 0.0,
    ) -> None:
        """Note who took part in a step that ended just now, or some time ago, with how much work.

        Steps and drafts are noted in the order in which they ran.
        """
        self._note(duration_s, lambda tally: tally.add_step(batch, duration_s, samples), ago_s)

    def charge_draft(
        self,
        chunks: Sequence[Chunk],
        passes: Sequence[DraftPass],
        shape: ModelShape,
        duration_s: float,
    ) -> None:
        """Note what drafting took; see `WindowTally.add_draft`."""
        self._note(duration_s, lambda tally: tally.add_draft(chunks, passes, shape, duration_s))

    def _note(
        self, duration_s: float, note: Callable[[WindowTally], None], ago_s: float = 0.0
    ) -> None:
        end_s = self._clock() - ago_s
        self._timeline.add(end_s - duration_s, end_s, note)

    def rehearse(self, batch: Batch, run: Callable[[Batch], object]) -> bool:
        """Run a made-up batch before serving: its joules are load, and the fit learns from it.

        It is repeated until slow counters have ticked often enough. Returns whether anything was
        learnt.
        """
        self._look()
        began_s, num_runs, learnt = self._clock(), 0, self.learnt.num_windows
        long_s = _REHEARSED_PERIODS * self.meter.period_s
        tally = self.learnt.tally()
        before = {domain: replace(counter) for domain, counter in self._counters.items()}
        while not num_runs or self._clock() - began_s < long_s:
            run_began_s = self._clock()
            run(batch)
            tally.add_step(batch, self._clock() - run_began_s)
            num_runs += 1
        run_s = max(self._clock() - began_s, 1e-9)
        self._look()
        for domain, counter in before.items():
            if domain not in self._last.joules:
                continue  # it was lost meanwhile
            window = counter.advance(self._last, self.learnt.idle_w(domain))
            if window is not None:
                # The counter's last tick need not be the end of the last run.
                part = window.duration_s / run_s if num_runs > 1 else 1.0
                self.learnt.fit(domain).observe([part * s for s in tally.busy_s], window.active_j)
        return self.learnt.num_windows > learnt

    def rest(self, wait: Callable[[float], object]) -> None:
        """Learn idle power before serving, where the meter does not know it beforehand."""
        if self.learnt.idle.watts or not self._last.joules:
            return
        # A counter's last tick may be from before: so far it has counted something else.
        if (late_s := self.meter.period_s + self.meter.lag_s) > 0:
            wait(late_s)
        self._look()
        before = [replace(counter) for counter in self._counters.values()]
        wait(max(_REST_S, _REHEARSED_PERIODS * self.meter.period_s))
        self._look()
        for counter in before:
            if counter.domain in self._last.joules:
                self.learnt.learn_idle(counter, self._last)

    def finish(
        self,
        request_id: str,
        outcome: Outcome,
        counts: TokenCounts,
        *,
        mean_layers: float | None = None,
    ) -> None:
        """End a request; its receipt comes from `settle`."""
        now_s = self._clock()
        self._num_closing += 1
        bill = self._bills[request_id]
        bill.close(self.meter, outcome, closed_s=now_s, counts=counts, mean_layers=mean_layers)

    def settle_in_s(self) -> float | None:
        """Seconds until `settle` has something to do; None when nothing is due."""
        if not self._num_closing:
            return None
        closing = [bill for bill in self._bills.values() if bill.closing]
        # A look after the last step that left work uncounted: its counter has not ticked yet.
        in_vain = self._timeline and self._tried_s >= self._timeline.last_work_s
        wait_s = _RETRY_S if in_vain else self.meter.period_s
        if all(bill.sent_provisional for bill in closing):
            wait_s = _FINALISE_EVERY_S
        # A counter that ticks has the end of a request only after the next tick.
        ticked_s = min(bill.closed_s for bill in closing) + self.meter.period_s
        return max(0.0, max(self._tried_s + wait_s, ticked_s) - self._clock())

    def settle(self) -> list[Receipt]:
        """Look at the meter when it is time, and return the receipts that are ready."""
        age_s = self._clock() - self._tried_s
        due_s = self.settle_in_s()
        if due_s == 0 or age_s >= self._look_every_s:
            self._look()
        return [] if due_s is None else self._ready(self._receipt_wait_s)

    def drain(self) -> list[Receipt]:
        """Look now and return every receipt that can be made, without waiting."""
        self._look()
        return self._ready(0.0)

    def if_lost(self) -> tuple[list[Receipt], Totals]:
        """What to book should this process die now: every open bill as lost, and totals with them.

        What is on no final receipt stays open.

        As of the last reading, which is made now unless one has just been made: what is used from
        then on would be on nobody's bill.
        """
        now_s = self._clock()
        if now_s - self._tried_s >= max(_SHORTEST_LOOK_S, self.meter.period_s):
            self._look()
        uncounted = self._timeline.owners
        receipts = [
            bill.if_lost(self.meter, now_s, has_worked=request_id in uncounted)
            for request_id, bill in self._bills.items()
        ]
        totals = replace(self.totals)
        lost_j = sum(one.total_j or 0.0 for one in receipts if one.status == "final")
        totals.requests_j, totals.open_j = totals.requests_j + lost_j, totals.open_j - lost_j
        return receipts, totals

    def _ready(self, wait_s: float) -> list[Receipt]:
        now_s = self._clock()
        uncounted = self._timeline.owners
        receipts: list[Receipt] = []
        for request_id, bill in list(self._bills.items()):
            if bill.closing is None:
                continue
            is_counted = request_id not in uncounted
            if is_counted and bill.lost:
                receipts += [] if bill.sent_provisional else [self._provisional(bill)]
                self._write_off(bill)
            elif is_counted:
                receipts.append(self._finalise(bill))
            elif not bill.sent_provisional and now_s - bill.closed_s >= wait_s:
                receipts.append(self._provisional(bill))
        self.published = replace(self.totals)
        return receipts

    def _finalise(self, bill: Bill) -> Receipt:
        self._remove(bill)
        receipt = bill.final(self.meter)
        if receipt.status != "final":
            self.totals.unattributed_j += bill.metered_j
            return receipt
        self.totals.requests_j += bill.total_j
        self.totals.unattributed_j += bill.untold_j
        self._label(bill)
        return receipt

    def _label(self, bill: Bill) -> None:
        request = bill.request
        for (domain, name), energy_j in bill.told_j.items():
            label = Label(domain, name, request.model, request.adapter_name or "")
            self.spent_j[label] = self.spent_j.get(label, 0.0) + energy_j

    def _write_off(self, bill: Bill) -> None:
        """Close a bill whose joules will never be known; what was metered of it is nobody's."""
        self._remove(bill)
        self.totals.unattributed_j += bill.metered_j

    def _remove(self, bill: Bill) -> None:
        self._num_closing -= 1
        del self._bills[bill.request.request_id]
        self.totals.open_j -= bill.metered_j

    def _provisional(self, bill: Bill) -> Receipt:
        """A receipt with a prediction for what no counter has counted yet."""
        bill.sent_provisional = True
        own = bill.request.request_id
        active_j: dict[Phase, float] = {}
        idle_j, pending = 0.0, Work()
        for domain in self.learnt.power:
            if domain not in self._last.joules:
                continue  # it is lost, and nothing is known of it
            counter = self._counters[domain]
            works = [(k[1], w) for k, w in self._uncounted(counter.as_of_s) if k[0] == own]
            pending = max(pending, total_work(w for _, w in works), key=lambda w: w.residence_s)
            for phase, work in [*works, *bill.lost.items()]:
                predicted_j = work.claim_j * self.learnt.part(domain)
                active_j[phase] = active_j.get(phase, 0.0) + predicted_j
                idle_j += self.learnt.idle_w(domain) * work.residence_s
        return bill.provisional(active_j if self.learnt.num_windows else None, idle_j, pending)

    def _uncounted(self, since_s: float) -> list[tuple[Key, Work]]:
        return self._timeline.between(since_s, float("inf"))

    def _look(self) -> None:
        """Read the meter and share out what its counters have counted since their last ticks."""
        self._tried_s = self._clock()
        reading = self._read()
        if reading is not None:
            self.learnt.idle.know(self.meter.idle_w)
            for domain in reading.joules:
                self._follow(domain, reading)
            self._last = reading
            self._tried_s = reading.at_s
            self._forget(reading)
            self._check()
        if self._clock() - self._timeline.oldest_s >= _GIVE_UP_AFTER_S:
            self._give_up_waiting()

    def _read(self) -> Reading | None:
        try:
            return self.meter.read()
        except SensorError as error:
            self.num_sensor_errors += 1
            log.warning("meter: %s", error)
            return None

    def _follow(self, domain: str, reading: Reading) -> None:
        counter = self._counters.get(domain)
        if counter is None:
            self._counters[domain] = DomainCounter.begin(domain, reading)
            return
        if reading.joules[domain] < counter.joules:
            self._violated(f"{domain} fell from {counter.joules} to {reading.joules[domain]} J")
            self._counters[domain] = DomainCounter.begin(domain, reading)
            return
        before = replace(counter)
        window = counter.advance(reading, self.learnt.idle_w(domain))
        if window is None:
            return
        self._doubt(domain, before.reading, reading)
        is_gap = counter.is_gap or domain in reading.gaps - reading.held
        was_lost, counter.is_gap, counter.was_lost = counter.was_lost, False, False
        self.totals.meter_j += window.energy_j
        works = self._timeline.between(window.start_s, window.end_s)
        if was_lost and not is_gap:
            for (owner, _), _ in works:
                self._bills[owner].miss({domain}, self._needs)
            self.totals.unattributed_j += window.energy_j
            return
        if is_gap or (works and reading.paused_s > before.reading.paused_s):
            self._give_up(works)
            self.totals.unattributed_j += window.energy_j
            return
        self.totals.unattributed_j += window.unattributed_j
        self.totals.train_j += window.train_j
        if works:
            busy_s = self._timeline.busy_s(window.start_s, window.end_s)
            self._share_out(domain, window, works, busy_s, is_seen=domain in reading.as_of_s)
        else:
            self._book_idle(before, reading, window)

    def _doubt(self, domain: str, before: Reading, now: Reading) -> None:
        """Mark who has work where a counter has said what cannot be true, though it was mended."""
        num_faults = now.num_faults.get(domain, 0) - before.num_faults.get(domain, 0)
        if num_faults > 0:
            self.num_counter_faults += num_faults
            for owner in self._timeline.owners:
                self._bills[owner].is_doubtful = True

    def _forget(self, reading: Reading) -> None:
        """Drop work that every counter has counted; lost ones count as long as others do."""
        live = [counter.as_of_s for d, counter in self._counters.items() if d in reading.joules]
        if not live and reading.lost:
            return
        missing = (self._needs | reading.lost.keys()) - reading.joules.keys()
        for (owner, _), work in self._timeline.forget(min(live, default=float("inf"))):
            self._bills[owner].count(work)
            self._bills[owner].miss(missing, self._needs)
            for domain in missing & self._counters.keys():
                self._counters[domain].was_lost = True
        self._timeline.seal(max(live, default=float("-inf")))

    def _give_up_waiting(self) -> None:
        """No tick will tell who used what until then."""
        self._give_up(self._uncounted(float("-inf")))
        for (owner, _), work in self._timeline.forget(float("inf")):
            self._bills[owner].count(work)
        for counter in self._counters.values():
            counter.is_gap = True

    def _give_up(self, works: Iterable[tuple[Key, Work]]) -> None:
        for (owner, phase), work in works:
            lost = self._bills[owner].lost
            lost[phase] = lost.get(phase, Work()) + work

    def _check(self) -> None:
        self.published = replace(self.totals)
        if self.totals.residual > CONSERVATION_TOLERANCE:
            self._violated(str(self.totals))

    def _violated(self, what: str) -> None:
        self.num_violations += 1
        log.critical("joules do not add up: %s", what)

    def _book_idle(self, before: DomainCounter, now: Reading, window: DomainWindow) -> None:
        own_j = window.idle_j + window.active_j
        if before.as_of_s < self._serving_s:
            self.totals.load_j += own_j
            return
        self.totals.idle_j += own_j
        # A counter that lags counts the end of the work after it.
        if before.as_of_s >= self._timeline.last_work_s + self.meter.lag_s:
            self.learnt.learn_idle(before, now)

    def _share_out(
        self,
        domain: str,
        window: DomainWindow,
        works: Sequence[tuple[Key, Work]],
        busy_s: Sequence[float],
        *,
        is_seen: bool,
    ) -> None:
        """Active energy by what the work should cost, idle energy by how long it took."""
        fit = self.learnt.fit(domain)
        total = total_work(work for _, work in works)
        active = split(window.active_j, [work.claim_j for _, work in works])
        predicted = split(fit.predict_j(busy_s), [work.claim_j for _, work in works])
        busy_j = window.idle_while_busy_j(total.residence_s)
        own_idle_j = busy_j * window.cpu.of_floor
        self.totals.unattributed_j += busy_j - own_idle_j
        self.totals.idle_j += window.idle_j - busy_j
        idle = split(own_idle_j, [work.residence_s for _, work in works])
        self.totals.open_j += window.active_j + own_idle_j
        shares: dict[str, list[Share]] = {}
        for i, ((owner, phase), work) in enumerate(works):
            share = Share(domain, phase, work, active[i], idle[i], predicted[i])
            shares.setdefault(owner, []).append(share)
        errors = self.learnt.errors(domain, busy_s, is_seen=is_seen)
        for owner, own in shares.items():
            self._bills[owner].add(own, window, errors)
        fit.observe(busy_s, window.active_j)
