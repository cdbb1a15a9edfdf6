"""`greenllm adapters`: list, add, remove and merge LoRA adapters.

Contract: they need no running server, and work beside one. Not covered: servers that were given
other folders with `--adapter-dirs`; those are asked through `/v1/models`.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from greenllm.cli.options import DataDir
from greenllm.figures import UNKNOWN, make_console, make_table, number, print_table
from greenllm.model.adapter_store import Stored, discard, list_stored, store
from greenllm.model.lora_config import AdapterError
from greenllm.model.options import LoadOptions, own_name
from greenllm.model.quiet import hush_libraries
from greenllm.places import adapters_path

URL = "http://localhost:8000"


def show(data_dir: DataDir = None) -> None:
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


def add(
    name: Annotated[str, typer.Argument(help="Its name in requests.")],
    folder: Annotated[Path, typer.Argument(help="Folder that PEFT's save_pretrained wrote.")],
    model: Annotated[
        str | None, typer.Option(help="Base model that it must fit: folder, hub id or 'bundled'.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Check and copy; with a model, against its modules."""
    hush_libraries()
    targets, reserved = None, set[str]()
    if model is not None:
        from greenllm.model.targets import targets_of

        targets, reserved = targets_of(model, LoadOptions()), {model, own_name(model)}
    home, console = adapters_path(data_dir), make_console()
    weights = store(home, name, folder, targets, reserved=reserved)
    checked = f"fits {model}" if model else "its base was not checked: give --model to do that"
    console.print(
        f"{name}: rank {weights.rank}, {number(weights.num_parameters)} parameters; {checked}",
        soft_wrap=True,
    )
    console.print("\n".join(renewal_lines(name, home / name)), soft_wrap=True)


def renewal_lines(name: str, place: Path) -> list[str]:
    """How a running server that knows another adapter by this name gets this one."""
    return [
        "Servers with this data folder find it by themselves. One that has served another adapter"
        f" as {name} keeps to that until it is told, here on port 8000:",
        request_line("unload_lora_adapter", {"lora_name": name}),
        request_line("load_lora_adapter", {"lora_name": name, "lora_path": str(place.resolve())}),
    ]


def request_line(route: str, body: dict[str, str]) -> str:
    """A POST as a shell command."""
    header = "-H 'Content-Type: application/json'"
    return f"  curl {URL}/v1/{route} {header} -d {shlex.quote(json.dumps(body))}"


def remove(
    name: Annotated[str, typer.Argument(help="Adapter to delete from the data folder.")],
    data_dir: DataDir = None,
) -> None:
    """Delete one."""
    discard(adapters_path(data_dir), name)
    make_console().print(f"{name} is deleted")


def merge(
    adapter: Annotated[str, typer.Argument(help="Name in the data folder, or any folder.")],
    model: Annotated[str, typer.Option(help="Its base model: folder, hub id or 'bundled'.")],
    output: Annotated[Path, typer.Option(help="Folder to make for the merged checkpoint.")],
    data_dir: DataDir = None,
) -> None:
    """Merge a stored adapter, or one in a folder, into its base."""
    folder = find_folder(adapter, adapters_path(data_dir))
    hush_libraries()
    from greenllm.model.merge import merge as merge_weights

    sizes = merge_weights(folder, model, output, LoadOptions())
    make_console().print(
        f"{output}: {number(sizes.merged_bytes / 1e6)} MB of weights, made of {model} and"
        f" an adapter of {number(sizes.adapter_bytes / 1e6)} MB",
        soft_wrap=True,
    )


def find_folder(adapter: str, home: Path) -> Path:
    """The folder of a stored adapter, or the one that is named.

    Raises:
        AdapterError: there is neither.
    """
    if os.sep not in adapter and (home / adapter).is_dir():
        return home / adapter
    if not Path(adapter).is_dir():
        raise AdapterError(
            f"no adapter or folder {adapter!r}; `greenllm adapters list` shows those in {home}"
        )
    return Path(adapter)
