"""The sums of `greenllm report` are those of the receipts, and its slices leave none out."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from greenllm.cli.report_data import Period, collect
from greenllm.cli.report_export import slices
from greenllm.config import ConfigError
from greenllm.energy.ledger import GROUPS, Ledger
from greenllm.energy.receipt import Receipt

HOUR_S = 3600.0
NOON_S = 1_767_268_800.0


def many(count: int) -> list[Receipt]:
    """Random receipts over five hours, some unmetered, some without grams."""
    draw = random.Random(7)
    return [
        Receipt(
            request_id=f"m{number}",
            model=draw.choice(["a", "b"]),
            adapter=draw.choice([None, "x", "y"]),
            key=draw.choice([None, "k"]),
            outcome=draw.choice(["completed", "aborted"]),
            endpoint=draw.choice(["/v1/completions", "/v1/chat/completions"]),
            created_s=NOON_S + draw.uniform(-2, 3) * HOUR_S,
            status="final",
            method="measured:fake",
            measured=True,
            prompt_tokens=draw.randrange(9),
            completion_tokens=draw.randrange(9),
            active_j=draw.choice([None, draw.random()]),
            idle_j=draw.random(),
            operational_g=draw.choice([None, draw.random()]),
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def receipts() -> list[Receipt]:
    """What the ledger holds: one receipt is a hair before the hour.

    SQLite rounds its time to milliseconds, and so up to the next hour.
    """
    drawn = many(300)
    return [replace(drawn[0], request_id="edge", created_s=NOON_S + HOUR_S - 1e-4), *drawn]


@pytest.fixture(scope="module")
def ledger(receipts: list[Receipt], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    writer = Ledger(path)
    writer.open_session("s-1", method="measured:fake", measured=True)
    writer.record("s-1", receipts)
    writer.close()
    return path


@pytest.mark.parametrize("group_by", GROUPS)
def test_groups_add_up_to_the_receipts(
    ledger: Path, receipts: list[Receipt], group_by: str
) -> None:
    period = Period(NOON_S - HOUR_S, NOON_S + 2.5 * HOUR_S)
    reader = Ledger(ledger, read_only=True)
    found = collect(reader, period, group_by)
    reader.close()
    inside = [one for one in receipts if period.since_s <= one.created_s < period.until_s]
    assert found.total.requests == len(inside)
    for name in ("active_j", "idle_j", "total_j", "gco2e"):
        values = [getattr(one, name) for one in inside]
        expected = pytest.approx(sum(value for value in values if value is not None))
        assert (getattr(found.total, name) or 0.0) == expected
        assert sum(getattr(group, name) or 0.0 for group in found.groups) == expected
    tokens = sum(one.completion_tokens for one in inside)
    assert found.total.metered_tokens == tokens == found.total.completion_tokens


def test_slices_leave_nothing_out(ledger: Path, receipts: list[Receipt]) -> None:
    reader = Ledger(ledger, read_only=True)
    parts = slices(reader, Period())
    read = [reader.receipts(since_s=part.since_s, until_s=part.until_s) for part in parts]
    reader.close()
    assert len(parts) == 6
    found = sorted(receipt.request_id for batch in read for receipt in batch)
    assert found == sorted(receipt.request_id for receipt in receipts)


def test_a_period_ends_after_it_begins() -> None:
    with pytest.raises(ConfigError):
        Period(1.0, 1.0)
