"""`greenllm adapters`: the commands' arguments. What each does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

adapters = typer.Typer(
    name="adapters",
    help="LoRA adapters: what is in the data folder, and merging one into its base.",
    no_args_is_help=True,
)
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder with `adapters` in it (env GREENLLM_DATA_DIR); default is the platform's."
    ),
]


@adapters.command("list")
def list_(data_dir: DataDir = None) -> None:
    """Show every adapter in the data folder; broken ones say why."""
    from greenllm.cli.adapters_run import show

    show(data_dir)


@adapters.command()
def add(
    name: Annotated[str, typer.Argument(help="What requests will call it.")],
    folder: Annotated[Path, typer.Argument(help="Folder that PEFT's save_pretrained wrote.")],
    model: Annotated[
        str | None, typer.Option(help="Base it must fit: folder, hub id or 'bundled'.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Check an adapter and copy it into the data folder, where servers find it by its name.

    To replace one, remove it first; what a running server then needs is printed.
    """
    from greenllm.cli.adapters_run import put

    put(name, folder, model, data_dir)


@adapters.command()
def remove(
    name: Annotated[str, typer.Argument(help="Adapter to delete from the data folder.")],
    data_dir: DataDir = None,
) -> None:
    """Delete an adapter from the data folder.

    A server that found it there answers 404 to new requests; running ones finish. One that was
    told to load it from another folder keeps it until it is told to unload it.
    """
    from greenllm.cli.adapters_run import delete

    delete(name, data_dir)


@adapters.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="Name in the data folder, or any folder.")],
    model: Annotated[str, typer.Option(help="Its base: folder, hub id or 'bundled'.")],
    output: Annotated[Path, typer.Option(help="Folder to make for the merged checkpoint.")],
    data_dir: DataDir = None,
) -> None:
    """Write the base with an adapter merged into it: a full model that any tool can load."""
    from greenllm.cli.adapters_run import merge_into

    merge_into(adapter, model, output, data_dir)
