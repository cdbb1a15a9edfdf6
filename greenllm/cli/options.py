"""Turns a config dataclass into command-line options: each is declared once, in the dataclass."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from greenllm.config import ENVIRONMENT_PREFIX, default_of, flag


def with_options(
    config_type: type[Any], *, positional: str | None = None, environment: bool = True
) -> Callable[[Callable[[Mapping[str, Any], Path | None], None]], Callable[..., None]]:
    """Give a command `command(flags, config_file)` one option per field of `config_type`.

    Options that were not given arrive as None, so that a file or the environment can fill them;
    without `environment` the help does not speak of it.
    """

    def decorate(command: Callable[[Mapping[str, Any], Path | None], None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            file = given.pop("config", None)
            command(given, file)

        parameters = [_parameter(spec, positional, environment) for spec in _specs(config_type)]
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


def _specs(config_type: type[Any]) -> list[tuple[str, Any, str, Any]]:
    hints = typing.get_type_hints(config_type)
    return [
        (spec.name, hints[spec.name], spec.metadata["help"], default_of(spec))
        for spec in fields(config_type)
    ]


def _parameter(
    spec: tuple[str, Any, str, Any], positional: str | None, environment: bool
) -> inspect.Parameter:
    name, hint, help_text, default = spec
    notes = [f"env {ENVIRONMENT_PREFIX}{name.upper()}"] if environment else []
    if default not in (None, ()):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        notes.append(f"default {shown}")
    # Parentheses: rich would take square brackets for markup and print nothing.
    text = f"{help_text} ({', '.join(notes)})" if notes else help_text
    if name == positional:
        return _keyword(name, Annotated[str | None, typer.Argument(help=text)])
    kind, spelling = _option_type(hint), flag(name)
    if kind is bool:
        spelling += f"/--no-{name.replace('_', '-')}"
    return _keyword(name, Annotated[kind | None, typer.Option(spelling, help=text)])


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
