"""How many replicas, and how long one too many is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cluster.scaling import STAT, Scaling, full_at_of, replicas_for


@dataclass
class Controller:
    """Ray Serve's controller, as much of it as a policy sees; it does what the policy says."""

    target_num_replicas: int = 1
    total_num_requests: float = 0.0
    current_time: float = 1000.0
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 8
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None = None
    policy_state: dict[str, Any] | None = None

    def turn(self, policy: Scaling, after_s: float = 0.0) -> int:
        self.current_time += after_s
        self.target_num_replicas, self.policy_state = policy(self)
        return self.target_num_replicas


@pytest.mark.parametrize(
    ("requests", "replicas"),
    [(0, 1), (1, 1), (4, 1), (4.1, 2), (8, 2), (9, 3), (12, 3), (100, 3)],
)
def test_as_few_replicas_as_the_requests_fill(requests: float, replicas: int) -> None:
    assert replicas_for(requests, 4.0, least=1, most=3) == replicas


def test_a_replica_is_full_with_one_request_at_least() -> None:
    assert replicas_for(3, 0.0, least=1, most=8) == 3


@given(
    st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 1e3), st.integers(1, 9), st.integers(0, 9)
)
def test_more_requests_never_need_fewer_replicas(
    one: float, other: float, full_at: float, least: int, more: int
) -> None:
    most = least + more
    few, many = (
        replicas_for(requests, full_at, least=least, most=most) for requests in sorted((one, other))
    )
    assert least <= few <= many <= most
    assert many * max(1.0, full_at) >= min(max(one, other), most * max(1.0, full_at)) * (1 - 1e-6)


@pytest.mark.parametrize(
    ("metrics", "full_at"),
    [
        (None, 64.0),
        ({}, 64.0),
        ({STAT: {}}, 64.0),
        ({"other": {"a": 3.0}}, 64.0),
        ({STAT: {"a": 3.0}}, 3.0),
        ({STAT: {"a": 3.0, "b": 7.0, "c": 64.0}}, 7.0),
        ({STAT: {"a": 3.0, "b": 7.0}}, 5.0),
    ],
)
def test_replicas_are_full_where_the_middle_one_is(
    metrics: dict[str, dict[str, float]] | None, full_at: float
) -> None:
    assert full_at_of(metrics, 64.0) == full_at


def test_more_replicas_come_at_once() -> None:
    controller = Controller(total_num_requests=33)
    assert controller.turn(Scaling(full_at=8.0)) == 5
    controller.total_num_requests = 1e9
    assert controller.turn(Scaling(full_at=8.0)) == 8


def test_what_replicas_found_out_counts_more_than_what_was_assumed() -> None:
    controller = Controller(total_num_requests=16, aggregated_metrics={STAT: {"a": 4.0}})
    assert controller.turn(Scaling(full_at=64.0)) == 4


def test_replicas_go_one_by_one_after_patience() -> None:
    policy, controller = Scaling(full_at=8.0, patience_s=60.0), Controller(target_num_replicas=3)
    assert [controller.turn(policy, 20.0) for _ in range(9)] == [3, 3, 3, 2, 2, 2, 2, 1, 1]


def test_patience_begins_anew_when_all_were_needed() -> None:
    policy, controller = Scaling(full_at=8.0, patience_s=60.0), Controller(target_num_replicas=2)
    assert [controller.turn(policy, 30.0) for _ in range(2)] == [2, 2]
    controller.total_num_requests = 9
    assert controller.turn(policy, 29.0) == 2
    controller.total_num_requests = 0
    assert [controller.turn(policy, 30.0) for _ in range(3)] == [2, 2, 1]


def test_never_fewer_than_the_least() -> None:
    policy = Scaling(full_at=8.0, patience_s=0.0)
    controller = Controller(target_num_replicas=4, capacity_adjusted_min_replicas=2)
    assert [controller.turn(policy, 1.0) for _ in range(8)][-1] == 2
