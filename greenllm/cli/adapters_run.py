"""What the `greenllm adapters` commands do.

Contract: they need no running server, and work beside one. Not covered: servers that were given
other folders with `--adapter-dirs`; those are asked through `/v1/models`.
"""

from __future__ import annotations

import os
from pathlib import Path

from rich.table import Table

from greenllm.cli.figures import UNKNOWN, make_console, make_table, number, print_table
from greenllm.cli.places import adapters_path
from greenllm.model.adapter_store import Stored, discard, list_stored, store
from greenllm.model.options import LoadOptions


def show(data_dir: Path | None) -> None:
    """Print a table of what is there."""
    home, console = adapters_path(data_dir), make_console()
    found = list_stored(home)
    if not found:
        console.print(f"no adapters in {home}", soft_wrap=True)
        return
    print_table(console, f"Adapters in {home}", adapter_table(found))
    for item in found:
        if item.problem:
            console.print(f"{item.name} cannot be used: {item.problem}", soft_wrap=True)


def adapter_table(found: list[Stored]) -> Table:
    """One row per adapter, broken ones with dashes."""
    table = make_table(("name", "base", "targets", "rank", "parameters", "MB"), num_text=3)
    for item in found:
        facts = item.facts
        if facts is None:
            table.add_row(item.name, "broken", *[UNKNOWN] * 4)
            continue
        megabytes = number(facts.num_bytes / 1e6)
        cells = (str(facts.rank), number(facts.num_parameters), megabytes)
        table.add_row(item.name, facts.base or UNKNOWN, ", ".join(facts.targets), *cells)
    return table


def put(name: str, folder: Path, model: str | None, data_dir: Path | None) -> None:
    """Check and copy; with a model, against its modules."""
    _be_quiet()
    targets = None
    if model is not None:
        from greenllm.model.targets import targets_of

        targets = targets_of(model, LoadOptions())
    weights = store(adapters_path(data_dir), name, folder, targets)
    checked = f"fits {model}" if model else "its base was not checked: give --model to do that"
    make_console().print(
        f"{name}: rank {weights.rank}, {number(weights.num_parameters)} parameters; {checked}",
        soft_wrap=True,
    )


def delete(name: str, data_dir: Path | None) -> None:
    """Delete one."""
    discard(adapters_path(data_dir), name)
    make_console().print(f"{name} is deleted")


def merge_into(adapter: str, model: str, output: Path, data_dir: Path | None) -> None:
    """Merge a stored adapter, or one in a folder, into its base."""
    _be_quiet()
    from greenllm.model.merge import merge

    stored = adapters_path(data_dir) / adapter
    is_name = os.sep not in adapter and stored.is_dir()
    sizes = merge(stored if is_name else Path(adapter), model, output, LoadOptions())
    make_console().print(
        f"{output}: {number(sizes.merged_bytes / 1e6)} MB of weights, made of {model} and"
        f" an adapter of {number(sizes.adapter_bytes / 1e6)} MB",
        soft_wrap=True,
    )


def _be_quiet() -> None:
    """Progress bars of libraries are not part of a command's output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
