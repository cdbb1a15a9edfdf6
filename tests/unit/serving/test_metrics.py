"""What `/metrics` says of a ledger in trouble."""

from __future__ import annotations

from greenllm.energy.ledger_writer import LedgerState
from serving.metrics import Metrics
from tests.fake_engine import make_engine


def test_trouble_of_the_ledger_shows() -> None:
    state = LedgerState()
    metrics = Metrics(make_engine().stats, dict, lambda: 0, lambda: state)

    def ledger_lines() -> list[str]:
        lines = metrics.render().decode().splitlines()
        return [line for line in lines if line.startswith("greenllm_ledger")]

    assert ledger_lines() == [
        "greenllm_ledger_rows_waiting 0.0",
        "greenllm_ledger_writable 1.0",
        "greenllm_ledger_rows_dropped_total 0.0",
    ]
    state = LedgerState(num_waiting=7, num_dropped=2, is_writable=False)
    assert ledger_lines() == [
        "greenllm_ledger_rows_waiting 7.0",
        "greenllm_ledger_writable 0.0",
        "greenllm_ledger_rows_dropped_total 2.0",
    ]
