"""`greenllm truncate`: a model's first layers, as a checkpoint."""

from __future__ import annotations

from pathlib import Path

from greenllm.cli.figures import make_console, number
from greenllm.model.options import LoadOptions
from greenllm.model.quiet import hush_libraries


def run(model: str, layers: int | None, output: Path) -> None:
    """Write them, and say how large they are.

    Raises:
        LoadError: the model or the number of layers will not do.
    """
    hush_libraries()
    from greenllm.engine.drafting import default_exit, trained_exits
    from greenllm.model.truncate import num_layers_of, truncate

    options = LoadOptions()
    if layers is None:
        layers = default_exit(trained_exits(model), num_layers_of(model, options))
    made = truncate(model, layers, output, options)
    make_console().print(
        f"{output}: the first {layers} layers of {model} and its head, {number(made.parameters)}"
        f" parameters, {number(made.weight_bytes / 1e6)} MB",
        soft_wrap=True,
    )
