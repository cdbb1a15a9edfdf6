"""The metrics of several replicas, in one exposition."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.cluster.merged_metrics import merged

FIRST = b"""\
# HELP joules_total Energy.
# TYPE joules_total counter
joules_total{domain="cpu"} 3.5
# HELP wait_seconds Waiting.
# TYPE wait_seconds histogram
wait_seconds_bucket{le="0.5"} 1.0
wait_seconds_bucket{le="+Inf"} 2.0
wait_seconds_count 2.0
wait_seconds_sum 1.25
"""
SECOND = b"""\
# HELP joules_total Energy.
# TYPE joules_total counter
joules_total{domain="cpu"} 4.0
joules_total{domain="gpu"} 9.0
# HELP wait_seconds Waiting.
# TYPE wait_seconds histogram
wait_seconds_bucket{le="0.5"} 0.0
wait_seconds_bucket{le="+Inf"} 1.0
wait_seconds_count 1.0
wait_seconds_sum 0.75
# HELP only_here Its own.
# TYPE only_here gauge
only_here -1.0
"""
BOTH = """\
# HELP joules_total Energy.
# TYPE joules_total counter
joules_total{domain="cpu",replica="a"} 3.5
joules_total{domain="cpu",replica="b"} 4.0
joules_total{domain="gpu",replica="b"} 9.0
# HELP wait_seconds Waiting.
# TYPE wait_seconds histogram
wait_seconds_bucket{le="0.5",replica="a"} 1.0
wait_seconds_bucket{le="+Inf",replica="a"} 2.0
wait_seconds_count{replica="a"} 2.0
wait_seconds_sum{replica="a"} 1.25
wait_seconds_bucket{le="0.5",replica="b"} 0.0
wait_seconds_bucket{le="+Inf",replica="b"} 1.0
wait_seconds_count{replica="b"} 1.0
wait_seconds_sum{replica="b"} 0.75
# HELP only_here Its own.
# TYPE only_here gauge
only_here{replica="b"} -1.0
"""


def test_every_sample_has_the_name_of_its_replica() -> None:
    assert merged([("a", FIRST), ("b", SECOND)]).decode() == BOTH


def test_without_replicas_there_is_nothing() -> None:
    assert merged([]) == b""


def test_what_the_client_library_writes_keeps_its_samples() -> None:
    registry = CollectorRegistry()
    Counter("c", "A counter.", registry=registry).inc(2)
    Histogram("h", "A histogram.", ["x"], registry=registry).labels('q"\\\n').observe(3.0)
    Gauge("g", "A gauge.", registry=registry).set(float("inf"))
    text = generate_latest(registry)
    found = merged([("a", text)]).decode()
    assert re.sub(r',replica="a"|replica="a",|\{replica="a"\}', "", found) == text.decode()
    assert found.count('replica="a"') == sum(
        not line.startswith("#") for line in text.decode().splitlines()
    )
