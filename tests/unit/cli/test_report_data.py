"""The sums of `greenllm report` are the ledger's, however the receipts are read."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from greenllm.cli import report
from greenllm.cli.report_data import Period, collect, slices
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
def test_sums_are_the_ledgers(ledger: Path, group_by: str) -> None:
    reader = Ledger(ledger, read_only=True)
    period = Period(NOON_S - HOUR_S, NOON_S + 2.5 * HOUR_S)
    expected = reader.sums(group_by, since_s=period.since_s, until_s=period.until_s)
    found = collect(reader, period, group_by, lambda receipts: None).groups
    reader.close()
    assert [sums.group for sums in found] == [line.group for line in expected]
    for sums, line in zip(found, expected, strict=True):
        for name in ("requests", "prompt_tokens", "completion_tokens", "unmetered"):
            assert getattr(sums, name) == getattr(line, name)
        for name in ("active_j", "total_j", "gco2e"):
            assert getattr(sums, name) == pytest.approx(getattr(line, name))


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


@pytest.mark.parametrize(("took_s", "shown"), [(1.9, False), (2.1, True)])
def test_a_bar_shows_only_when_it_takes_long(took_s: float, shown: bool) -> None:
    console = Console(force_terminal=True, width=60)
    times_s = iter([0.0, took_s])
    with (
        console.capture() as capture,
        report.progress(1, clock=lambda: next(times_s), console=console) as advance,
    ):
        advance(1)
    assert ("receipts" in capture.get()) is shown
