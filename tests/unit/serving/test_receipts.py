"""What a client reads of a receipt: nothing unknown is called measured."""

from __future__ import annotations

import pytest

from greenllm.energy.receipt import Receipt, Status
from serving.receipts import energy_headers, energy_object


def receipt(active_j: float | None, *, measured: bool = True) -> Receipt:
    status: Status = "provisional" if active_j is None else "final"
    return Receipt("r", "m", "completed", 0.0, status, "measured:rapl", measured, active_j=active_j)


@pytest.mark.parametrize(
    ("given", "measured"),
    [
        (receipt(2.0), True),
        (receipt(2.0, measured=False), False),
        (receipt(None), False),
    ],
)
def test_joules_that_are_not_known_are_not_measured(given: Receipt, measured: bool) -> None:
    energy, headers = energy_object(given), energy_headers(given)
    assert energy["measured"] is measured
    assert headers["X-Energy-Measured"] == str(measured).lower()
    assert (energy["energy_joules"] is None) == ("X-Energy-Joules" not in headers)
