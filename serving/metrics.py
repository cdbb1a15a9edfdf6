"""`GET /metrics`: Prometheus, base units, counters that end in `_total`.

Engine counters are read when scraped; histograms are fed as requests finish. A request with `n`
answers is one request and `n` sequences. Not covered: OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from greenllm.energy.account.totals import Label
from greenllm.energy.ledger_writer import LedgerState
from greenllm.energy.receipt import Receipt
from greenllm.engine.protocol import Stats
from serving.keys.limits import Limits

_JOULE_BUCKETS = (0.001, 0.01, 0.1, 1, 10, 100, 1e3, 1e4, 1e5)
_SECOND_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """All metrics of one server."""

    def __init__(
        self,
        stats: Callable[[], Stats],
        spent_j: Callable[[], Mapping[Label, float]],
        num_in_flight: Callable[[], int],
        ledger: Callable[[], LedgerState],
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats, spent_j, num_in_flight, ledger))
        labels = ["model", "outcome"]
        self._energy = Histogram(
            "greenllm_request_energy_joules",
            "Total joules per request.",
            labels,
            buckets=_JOULE_BUCKETS,
            registry=self._registry,
        )
        self._duration = Histogram(
            "greenllm_request_duration_seconds",
            "Time from admission to the last token.",
            labels,
            buckets=_SECOND_BUCKETS,
            registry=self._registry,
        )

        self.wrong_keys = Counter(
            "greenllm_authentication_failures",
            "Requests without a valid API key.",
            registry=self._registry,
        )
        self.over_limit = Counter(
            "greenllm_requests_over_limit",
            "Requests refused because their key has used what it may.",
            ["limit"],
            registry=self._registry,
        )
        for spec in fields(Limits):
            self.over_limit.labels(spec.name)

    def observe(self, receipt: Receipt) -> None:
        """Count a finished request."""
        labels = (receipt.model, receipt.outcome)
        self._duration.labels(*labels).observe(receipt.duration_s)
        if receipt.total_j is not None:
            self._energy.labels(*labels).observe(receipt.total_j)

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self._registry)


class _EngineCollector:
    """Turns engine statistics into metric families at scrape time."""

    def __init__(
        self,
        stats: Callable[[], Stats],
        spent_j: Callable[[], Mapping[Label, float]],
        num_in_flight: Callable[[], int],
        ledger: Callable[[], LedgerState],
    ) -> None:
        self._stats = stats
        self._spent_j = spent_j
        self._num_in_flight = num_in_flight
        self._ledger = ledger

    def collect(self) -> Iterable[Metric]:
        """Yield all families."""
        stats = self._stats()
        yield from _gauges(stats, self._num_in_flight())
        yield from _counters(stats)
        yield self._energy()
        yield _account(stats)
        yield _meter(stats)
        yield from _ledger(self._ledger())
        yield from _arms(stats)

    def _energy(self) -> Metric:
        family = CounterMetricFamily(
            "greenllm_energy_joules",
            "Joules charged to requests, as of the last reading.",
            labels=["domain", "phase", "model", "adapter"],
        )
        for label, energy_j in dict(self._spent_j()).items():
            family.add_metric([label.domain, label.phase, label.model, label.adapter], energy_j)
        return family


def _gauges(stats: Stats, num_in_flight: int) -> Iterable[Metric]:
    values = {
        "greenllm_requests_in_flight": ("Requests without a receipt.", num_in_flight),
        "greenllm_sequences_waiting": ("Sequences waiting for a place.", stats.num_waiting),
        "greenllm_sequences_running": ("Sequences in the batch.", stats.num_running),
        "greenllm_kv_blocks": ("Blocks of the KV cache.", stats.num_blocks),
        "greenllm_kv_blocks_free": ("Free blocks of the KV cache.", stats.num_free_blocks),
        "greenllm_account_open_joules": (
            "Joules of requests without a final receipt.",
            stats.totals.open_j,
        ),
    }
    for name, (text, value) in values.items():
        yield GaugeMetricFamily(name, text, value=value)


def _counters(stats: Stats) -> Iterable[Metric]:
    values = {
        "greenllm_steps": ("Batches run.", stats.num_steps),
        "greenllm_preemptions": ("Sequences that lost their blocks.", stats.num_preemptions),
        "greenllm_prompt_tokens": ("Prompt tokens of finished requests.", stats.prompt_tokens),
        "greenllm_cached_tokens": ("Prompt tokens found in the cache.", stats.cached_tokens),
        "greenllm_completion_tokens": ("Generated tokens.", stats.completion_tokens),
        "greenllm_drafted_tokens": ("Draft tokens that were checked.", stats.drafted_tokens),
        "greenllm_accepted_tokens": ("Draft tokens that were accepted.", stats.accepted_tokens),
        "greenllm_sensor_errors": ("Readings that failed.", stats.num_sensor_errors),
        "greenllm_counter_faults": (
            "Counters that said what no hardware can have drawn.",
            stats.num_counter_faults,
        ),
        "greenllm_conservation_violations": (
            "Windows whose joules did not add up.",
            stats.num_violations,
        ),
    }
    for name, (text, value) in values.items():
        yield CounterMetricFamily(name, text, value=value)


def _account(stats: Stats) -> Metric:
    family = CounterMetricFamily(
        "greenllm_account_joules",
        "Joules by destination; with the open ones they add up to the meter's.",
        labels=["destination"],
    )
    totals = stats.totals
    for name in ("load", "idle", "train", "unattributed", "requests"):
        family.add_metric([name], getattr(totals, f"{name}_j"))
    return family


def _meter(stats: Stats) -> Metric:
    text = "Joules the meter counted since the server started."
    return CounterMetricFamily("greenllm_meter_joules", text, value=stats.totals.meter_j)


def _ledger(state: LedgerState) -> Iterable[Metric]:
    waiting = "Rows that wait in memory for the ledger."
    yield GaugeMetricFamily("greenllm_ledger_rows_waiting", waiting, value=state.num_waiting)
    writable = "1 where the last attempt to write the ledger succeeded."
    yield GaugeMetricFamily("greenllm_ledger_writable", writable, value=int(state.is_writable))
    dropped = "Rows that the ledger will never have."
    yield CounterMetricFamily("greenllm_ledger_rows_dropped", dropped, value=state.num_dropped)


def _arms(stats: Stats) -> Iterable[Metric]:
    """What `auto` has measured of each speculation method, if anything."""
    labels = ["batch", "method", "num_tokens"]
    cost = GaugeMetricFamily(
        "greenllm_speculation_seconds_per_token",
        "Mean step time per token of each speculation method that auto knows, by batch size.",
        labels=labels,
    )
    acceptance = GaugeMetricFamily(
        "greenllm_speculation_acceptance",
        "Share of its draft tokens that were accepted.",
        labels=labels,
    )
    in_use = GaugeMetricFamily(
        "greenllm_speculation_in_use", "1 for the method that auto uses now.", labels=labels
    )
    for size, arms in stats.arms.items():
        for place, arm in enumerate(arms):
            values = [str(size), arm.choice.method, str(arm.choice.num_tokens)]
            in_use.add_metric(values, int(place == 0))
            if arm.cost_s is not None:
                cost.add_metric(values, arm.cost_s)
            if arm.acceptance is not None:
                acceptance.add_metric(values, arm.acceptance)
    return (cost, acceptance, in_use)
