"""Reading of the small CSV tables that ship beside this package.

Contract: `read_table` gives every row of a table as text by column name, in file order;
`closest` words a hint for a name that was not found. Nothing is converted or guessed here:
an empty cell stays empty, and `optional_float` turns it into None, never into 0.

Source: the files under `data/`; each row names its own source, year and licence.

Not covered: tables outside the package and any form of download.
"""

import csv
import difflib
from collections.abc import Iterable
from importlib import resources


def read_table(file_name: str) -> list[dict[str, str]]:
    """All rows of one packaged CSV file."""
    path = resources.files("greenllm.energy").joinpath("data", file_name)
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def optional_float(text: str) -> float | None:
    """The number in a cell, or None for an empty one."""
    return float(text) if text else None


def optional_int(text: str) -> int | None:
    """The whole number in a cell, or None for an empty one."""
    return int(text) if text else None


def closest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """A hint that names the candidates most like `name`, ignoring case."""
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.5)
    if not matches:
        return "nothing similar is known"
    return "did you mean " + ", ".join(by_folded[match] for match in matches) + "?"
