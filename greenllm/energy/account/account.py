"""The account: every joule the meter counts goes to a request, to idle, to load or to nobody.

Time is cut into windows by meter readings. A busy window is shared out among the requests whose
work ran in it; a window without work goes to `idle` (or to `load` until serving starts); what
other processes on the machine caused goes to `unattributed`, or to `train` where a fine-tuning job
of this server did. After every window

    load + idle + training + unattributed + finished requests + open requests = meter delta

is checked to 1e-6. A request is `final` once the window with its last step is closed. When the
meter does not answer for `receipt_wait_s`, a `provisional` receipt with the predicted joules goes
out first; a later reading makes it final. After `_GIVE_UP_AFTER_S` without an answer the work so
far is given up: its requests stay provisional, and the energy of the gap is `unattributed`.

Not covered: training on the GPU that serves, which cannot be told apart; spreading a day's idle
energy over requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from greenllm.core import Batch, Chunk, DraftPass, Phase, Request, Sample
from greenllm.energy.account.attribution import (
    CoefficientFit,
    Work,
    prior_coefficients,
    split,
    total_work,
)
from greenllm.energy.account.bill import Bill, TokenCounts
from greenllm.energy.account.tally import Key, WindowTally
from greenllm.energy.account.window import IdlePower, Window, take_apart
from greenllm.energy.meters.protocol import Meter, Reading, SensorError
from greenllm.energy.receipt import Outcome, Receipt
from greenllm.shape import ModelShape

log = logging.getLogger(__name__)

CONSERVATION_TOLERANCE = 1e-6
_LONGEST_WINDOW_S = 1.0
_GIVE_UP_AFTER_S = 5.0
_SHORTEST_LOOK_S = 0.1
_RETRY_S = 0.05
_FINALISE_EVERY_S = 1.0
_REHEARSED_PERIODS = 3
_REST_S = 0.5


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
    ) -> None:
        """Open the books at the reading `first`, or now."""
        self.meter = meter
        self.fit = CoefficientFit(prior_coefficients(shape))
        self.idle_power = IdlePower(meter.idle_w)
        self.totals = Totals()
        self.published = Totals()
        self.spent_j: dict[Label, float] = {}
        self.num_sensor_errors = 0
        self.num_violations = 0
        self._shape = shape
        self._clock = clock
        self._receipt_wait_s = receipt_wait_s
        self._bills: dict[str, Bill] = {}
        self._window = WindowTally(shape)
        self._num_closing = 0
        self._serving = False
        self._first = self._last = first or meter.read()
        self._tried_s = self._idle_until_s = self._last.at_s
        self._in_gap = False

    def start_serving(self) -> None:
        """Book everything so far as load."""
        self._close_window()
        self._serving = True

    def open(self, request: Request) -> None:
        """Start a bill. Energy until now belongs to whoever was there before."""
        if not self._bills:
            self._close_window()
            self._idle_until_s = self._clock()
        self._bills[request.request_id] = Bill(request, self._clock())

    def charge(self, batch: Batch, duration_s: float, samples: Sequence[Sample] = ()) -> None:
        """Note who took part in a step that just ran, and with how much work."""
        self._window.add_step(batch, duration_s, samples)

    def charge_draft(
        self,
        chunks: Sequence[Chunk],
        passes: Sequence[DraftPass],
        shape: ModelShape,
        duration_s: float,
    ) -> None:
        """Note what drafting took; see `WindowTally.add_draft`."""
        self._window.add_draft(chunks, passes, shape, duration_s)

    def _works(self, batch: Batch, duration_s: float) -> list[tuple[Key, Work]]:
        """The work of one batch by request and phase."""
        tally = WindowTally(self._shape)
        tally.add_step(batch, duration_s)
        return tally.works()

    def rehearse(self, batch: Batch, run: Callable[[Batch], object]) -> bool:
        """Run a made-up batch before serving: its joules are load, and the fit learns from it.

        It is repeated until slow counters have ticked often enough. Returns whether anything was
        learnt.
        """
        self._close_window()
        before, num_runs, learnt = self._last, 0, self.fit.num_windows
        while (
            not num_runs or self._clock() - before.at_s < _REHEARSED_PERIODS * self.meter.period_s
        ):
            run(batch)
            num_runs += 1
        self._close_window()
        window = take_apart(before, self._last, self.idle_power.watts)
        works = [work for _, work in self._works(batch, window.duration_s)]
        self.fit.observe(total_work(works * num_runs), sum(window.active_j.values()))
        return self.fit.num_windows > learnt

    def rest(self, wait: Callable[[float], object]) -> None:
        """Learn idle power before serving, where the meter does not know it beforehand."""
        if self.idle_power.watts or not self._last.joules:
            return
        self._close_window()
        before = self._last
        wait(_REST_S)
        self._close_window()
        window = take_apart(before, self._last, {})
        self.idle_power.learn(window.duration_s, window.active_j)

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
        wait_s = self.meter.period_s if self._tried_s <= self._last.at_s else _RETRY_S
        if all(bill.sent_provisional for bill in closing):
            wait_s = _FINALISE_EVERY_S
        # A counter that ticks has the end of a request only after the next tick.
        ticked_s = min(bill.closed_s for bill in closing) + self.meter.period_s
        return max(0.0, max(self._tried_s + wait_s, ticked_s) - self._clock())

    def settle(self) -> list[Receipt]:
        """Close the window when it is time, and return the receipts that are ready."""
        age_s = self._clock() - self._tried_s
        due_s = self.settle_in_s()
        if due_s == 0 or age_s >= _LONGEST_WINDOW_S:
            self._close_window()
        return [] if due_s is None else self._ready(self._receipt_wait_s)

    def drain(self) -> list[Receipt]:
        """Close the window now and return every receipt that can be made, without waiting."""
        self._close_window()
        return self._ready(0.0)

    def if_lost(self) -> tuple[list[Receipt], Totals]:
        """What to book should this process die now: every open bill as lost, and totals with them.

        As of the last reading, which is made now unless one has just been made: what is used from
        then on would be on nobody's bill.
        """
        now_s = self._clock()
        if now_s - self._tried_s >= max(_SHORTEST_LOOK_S, self.meter.period_s):
            self._close_window()
        receipts = [bill.if_lost(self.meter, self.fit, now_s) for bill in self._bills.values()]
        totals = replace(self.totals, open_j=0.0)
        totals.requests_j += self.totals.open_j
        return receipts, totals

    def _ready(self, wait_s: float) -> list[Receipt]:
        now_s = self._clock()
        unread = self._window.owners
        receipts: list[Receipt] = []
        for request_id, bill in list(self._bills.items()):
            if bill.closing is None:
                continue
            is_read = request_id not in unread
            if is_read and bill.lost:
                receipts += [] if bill.sent_provisional else [self._provisional(bill)]
                self._write_off(bill)
            elif is_read and self._last.at_s >= bill.closed_s:
                receipts.append(self._finalise(bill))
            elif not bill.sent_provisional and now_s - bill.closed_s >= wait_s:
                receipts.append(self._provisional(bill))
        self.published = replace(self.totals)
        return receipts

    def _finalise(self, bill: Bill) -> Receipt:
        self._num_closing -= 1
        del self._bills[bill.request.request_id]
        self.totals.open_j -= bill.total_j
        self.totals.requests_j += bill.total_j
        return bill.final(self.meter, self.fit)

    def _provisional(self, bill: Bill) -> Receipt:
        bill.sent_provisional = True
        own = bill.request.request_id
        pending = dict(bill.lost)
        for (owner, phase), work in self._window.works():
            if owner == own:
                _add(pending, phase, work)
        return bill.provisional(self.fit, pending, sum(self.idle_power.watts.values()))

    def _write_off(self, bill: Bill) -> None:
        """Close a bill whose joules will never be known; what was metered of it is nobody's."""
        self._num_closing -= 1
        del self._bills[bill.request.request_id]
        self.totals.open_j -= bill.total_j
        self.totals.unattributed_j += bill.total_j

    def _close_window(self) -> None:
        """Read the meter and share out what it counted since the last reading."""
        self._tried_s = self._clock()
        reading = self._read()
        if reading is None:
            if self._window and self._tried_s - self._last.at_s >= _GIVE_UP_AFTER_S:
                self._give_up()
            return
        self.idle_power.know(self.meter.idle_w)
        window = take_apart(self._last, reading, self.idle_power.watts)
        idle_s = max(0.0, self._idle_until_s - self._last.at_s)
        self._last = reading
        self._tried_s = reading.at_s
        self.totals.meter_j = reading.total_j - self._first.total_j
        self.totals.unattributed_j += window.unattributed_j
        self.totals.train_j += window.train_j
        self._book(window, idle_s)
        self._check()

    def _book(self, window: Window, idle_s: float) -> None:
        if self._in_gap:
            self._give_up()
            self._in_gap = False
            self.totals.unattributed_j += window.own_j
        elif self._window:
            idle, busy = window.split_idle(idle_s)
            self._book_idle(idle)
            self._share_out(busy)
        else:
            self._book_idle(window)

    def _read(self) -> Reading | None:
        """A reading, or None when the sensor fails or has not ticked over a window with work."""
        try:
            reading = self.meter.read()
        except SensorError as error:
            self.num_sensor_errors += 1
            log.warning("meter: %s", error)
            return None
        stuck = any(
            joules <= self._last.joules.get(domain, 0.0)
            for domain, joules in reading.joules.items()
        )
        return None if stuck and self._window else reading

    def _give_up(self) -> None:
        """No reading will tell what the work so far cost."""
        self._in_gap = True
        for (request_id, phase), work in self._window.take():
            _add(self._bills[request_id].lost, phase, work)

    def _check(self) -> None:
        self.published = replace(self.totals)
        if self.totals.residual > CONSERVATION_TOLERANCE:
            self.num_violations += 1
            log.critical("joules do not add up: %s", self.totals)

    def _book_idle(self, window: Window) -> None:
        if not self._serving:
            self.totals.load_j += window.own_j
            return
        joules = {d: window.idle_j[d] + window.active_j[d] for d in window.idle_j}
        self.idle_power.learn(window.duration_s, joules)
        self.totals.idle_j += window.own_j

    def _share_out(self, window: Window) -> None:
        done = self._window.take()
        keys, works = [key for key, _ in done], [work for _, work in done]
        all_active_j, all_idle_j = sum(window.active_j.values()), sum(window.idle_j.values())
        predicted = [self.fit.coefficients.predict_j(work) for work in works]
        active = split(all_active_j, predicted)
        idle = split(all_idle_j, [work.residence_s for work in works])
        active_of: dict[str, float] = {}
        for (request_id, _), active_j in zip(keys, active, strict=True):
            active_of[request_id] = active_of.get(request_id, 0.0) + active_j
        for i, (request_id, phase) in enumerate(keys):
            bill = self._bills[request_id]
            bill.add(phase, works[i], active_j=active[i], idle_j=idle[i], predicted_j=predicted[i])
            active_share = active[i] / all_active_j if all_active_j > 0 else 0.0
            idle_share = idle[i] / all_idle_j if all_idle_j > 0 else 0.0
            bill.shares_j += active_share * active_of[request_id]
            self._book_domains(bill, phase, window, active_share, idle_share)
        self.totals.open_j += window.own_j
        self.fit.observe(total_work(works), all_active_j)

    def _book_domains(
        self, bill: Bill, phase: Phase, window: Window, active_share: float, idle_share: float
    ) -> None:
        request = bill.request
        for domain in window.active_j:
            active_j = window.active_j[domain] * active_share
            idle_j = window.idle_j[domain] * idle_share
            bill.domains_j[domain] = bill.domains_j.get(domain, 0.0) + active_j + idle_j
            for name, energy_j in ((phase, active_j), ("idle", idle_j)):
                label = Label(domain, name, request.model, request.adapter_name or "")
                self.spent_j[label] = self.spent_j.get(label, 0.0) + energy_j


def _add(works: dict[Phase, Work], phase: Phase, work: Work) -> None:
    """Add to the work of a phase."""
    works[phase] = works.get(phase, Work()) + work
