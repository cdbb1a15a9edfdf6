"""The table of the cross-check: a row for each, dashes for what is unknown."""

from __future__ import annotations

import pytest
from rich.console import Console

from greenllm.cli import crosscheck
from greenllm.cli.crosscheck import check_table, cross_check
from greenllm.energy.calibration.witnesses import Counted, MeterWitness, Statement
from greenllm.energy.meters.choose import Rung
from greenllm.energy.meters.protocol import Reading, ReplayMeter


def _cells(line: str) -> list[str]:
    return line.split()


def test_each_has_a_row_with_its_ratio() -> None:
    told = [
        Statement("Zeus", "not installed"),
        Statement("CodeCarbon", "version 3", {"cpu": Counted(60.0, 6.0)}),
        Statement("rapl", "measured:rapl", {"cpu": Counted(40.0, 5.0), "dram": Counted(0.0, 0.0)}),
    ]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(check_table(told, ["rapl"]))
    rows = [_cells(line) for line in capture.get().splitlines() if line.strip()]
    assert rows[2] == ["Zeus", "—", "not", "installed", "—", "—", "—", "—"]
    assert rows[3][-4:] == ["60", "6", "10", "1.25"]
    assert rows[4][:2] == ["rapl,", "chosen"]
    assert rows[4][-4:] == ["40", "5", "8", "1"]
    assert rows[5][-4:] == ["0", "0", "—", "—"]


def test_every_rung_counts_the_same_load(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    monkeypatch.setattr(crosscheck, "_load", loads.append)
    readings = [Reading(0.0, {"cpu": 0.0}), Reading(5.0, {"cpu": 40.0})]
    other = MeterWitness("other", ReplayMeter(readings, method="another"))
    works = Rung("modelled", ReplayMeter(readings, method="modelled:x"), "works")
    broken = Rung("rapl", None, "permission denied")
    console = Console(width=120)
    with console.capture() as capture:
        cross_check(console, {"gpu": [], "cpu": [broken, works]}, 3, [other])
    said = capture.get()
    assert loads == [3]
    assert "3 busy hardware threads" in said
    lines = said.splitlines()
    (modelled,) = [line for line in lines if "modelled, chosen" in line]
    assert _cells(modelled)[-4:] == ["40", "5", "8", "1"]
    (rapl,) = [line for line in lines if "permission denied" in line]
    assert _cells(rapl)[-1] == "—"
    assert any("another" in line for line in lines)
