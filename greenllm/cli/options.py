"""Turns a config dataclass into command-line options: each is declared once, in the dataclass."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from greenllm.config import Options, default_of, flag, variable
from greenllm.options import DataOptions
from greenllm.places import PLACES

DATA_DIR_HELP = "{} (env {})".format(
    next(spec for spec in fields(DataOptions) if spec.name == "data_dir").metadata["help"],
    variable("data_dir"),
)
DataDir = Annotated[Path | None, typer.Option(help=DATA_DIR_HELP)]


def with_options(
    config_type: type[Any], *, positional: str | None = None, environment: bool = True
) -> Callable[[Callable[[Mapping[str, Any], Path | None], None]], Callable[..., None]]:
    """Give a command `command(flags, config_file)` one option per field of `config_type`.

    Options that were not given arrive as None, so that a file or the environment can fill them;
    without `environment` the help speaks of it only where every command reads it. Help shows
    options under the panel of the class that declares them.
    """
    read = {spec.name for spec in fields(config_type)} if environment else PLACES

    def decorate(command: Callable[[Mapping[str, Any], Path | None], None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            file = given.pop("config", None)
            command(given, file)

        parameters = [_parameter(*found, positional, read) for found in _declared(config_type)]
        winners = "environment and flags win" if environment else "flags win"
        help_text = f"TOML file with options; {winners} over it."
        config = Annotated[Path | None, typer.Option("--config", help=help_text)]
        parameters.append(_keyword("config", config))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = command.__doc__
        run.__name__ = command.__name__
        return run

    return decorate


def _declared(config_type: type[Any]) -> Iterator[tuple[Field[Any], Any, str | None]]:
    """Fields with their types and panels, in the order in which groups are listed as bases."""
    specs = {spec.name: spec for spec in fields(config_type)}
    hints = typing.get_type_hints(config_type)
    for declaring in _lineage(config_type):
        panel = declaring.panel if issubclass(declaring, Options) else None
        for name in inspect.get_annotations(declaring):
            if spec := specs.pop(name, None):
                yield spec, hints[name], panel


def _lineage(config_type: type[Any]) -> Iterator[type[Any]]:
    for base in config_type.__bases__:
        yield from _lineage(base)
    yield config_type


def _parameter(
    spec: Field[Any],
    hint: Any,
    panel: str | None,
    positional: str | None,
    read: Collection[str],
) -> inspect.Parameter:
    name, default = spec.name, default_of(spec)
    notes = [f"env {variable(name)}"] if name in read else []
    if default not in (None, (), ""):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        notes.append(f"default {shown}")
    # Parentheses: rich would take square brackets for markup and print nothing.
    help_text = spec.metadata["help"]
    text = f"{help_text} ({', '.join(notes)})" if notes else help_text
    if name == positional:
        return _keyword(name, Annotated[str | None, typer.Argument(help=text)])
    kind, spelling = _option_type(hint), flag(name)
    if kind is bool:
        spelling += f"/--no-{name.replace('_', '-')}"
    made = typer.Option(spelling, help=text, rich_help_panel=panel)
    return _keyword(name, Annotated[kind | None, made])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _option_type(hint: Any) -> Any:
    """The type typer should parse; choices and lists stay text and are checked by the config."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) in (Literal, tuple):
        return str
    return hint
