"""`greenllm truncate`: a model's first layers, as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from greenllm.figures import make_console, number
from greenllm.model.options import LoadOptions
from greenllm.model.quiet import hush_libraries


def truncate(
    model: Annotated[str, typer.Argument(help="Model folder, hub id, or 'bundled'.")],
    output: Annotated[Path, typer.Option(help="Folder to make for the checkpoint.")],
    layers: Annotated[
        int | None,
        typer.Option(help="Layers to keep; default is the trained exit nearest a third."),
    ] = None,
) -> None:
    """Write them, and say how large they are.

    Raises:
        LoadError: the model or the number of layers will not do.
    """
    hush_libraries()
    from greenllm.engine.drafting import default_exit, trained_exits
    from greenllm.model.truncate import num_layers_of
    from greenllm.model.truncate import truncate as write_layers

    options = LoadOptions()
    if layers is None:
        layers = default_exit(trained_exits(model), num_layers_of(model, options))
    made = write_layers(model, layers, output, options)
    make_console().print(
        f"{output}: the first {layers} layers of {model} and its head, {number(made.parameters)}"
        f" parameters, {number(made.weight_bytes / 1e6)} MB",
        soft_wrap=True,
    )
