"""The faults are those that the page for people lists."""

from __future__ import annotations

import re
from pathlib import Path

from evals.chaos.faults import FAULTS

PAGE = Path(__file__).parents[4] / "docs" / "robustness.md"


def test_each_fault_is_on_the_page() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for row in rows for name in re.findall("`(.*?)`", row)] == list(FAULTS)
