"""Commands that are found by name, and imported only when they are called.

Contract: a row of the table says where a command's function is and what `--help` prints, so that
the help of the program needs none of them. A function whose one argument is a config dataclass
gets an option per field; any other is a plain typer function.
"""

from __future__ import annotations

import importlib
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperOption

from greenllm.cli.options import with_options
from greenllm.config import load
from greenllm.places import places_of


@dataclass(frozen=True, slots=True)
class CommandRow:
    """Where a command is, and its help.

    positional: the option that may be given without its flag.
    environment: whether GREENLLM_ variables fill its options.
    """

    target: str
    help: str
    positional: str | None = None
    environment: bool = False


class PanelCommand(TyperCommand):
    """A command whose options are in groups also where help is plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section per panel."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            usual = "Options" if isinstance(parameter, TyperOption) else "Arguments"
            if record := parameter.get_help_record(ctx):
                panel = getattr(parameter, "rich_help_panel", None) or usual
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


class LazyCommand(TyperCommand):
    """A command whose options are known once its module is imported."""

    row: ClassVar[CommandRow]

    def load(self) -> TyperCommand:
        """Import the function and make the command of it."""
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(self.name, help=self.row.help, cls=PanelCommand)(_callable(self.row))
        command = typer.main.get_command(alone)
        assert isinstance(command, TyperCommand)
        return command

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """Parse arguments as the command does, which runs in this one's place."""
        return self.load().make_context(*arguments, **named)


def add_commands(
    app: typer.Typer, table: Mapping[str, CommandRow], groups: Mapping[str, str]
) -> None:
    """Add a command per row; `bench serve` is the command `serve` of the group `bench`."""
    apps = {"": app}
    for name, help_text in groups.items():
        apps[name] = typer.Typer(name=name, help=help_text, no_args_is_help=True)
        apps[name].callback()(_nothing)
    for path, row in table.items():
        group, _, name = path.rpartition(" ")
        lazy = type(LazyCommand.__name__, (LazyCommand,), {"row": row})
        apps[group].command(name, help=row.help, cls=lazy)(_nothing)
    for name in groups:
        app.add_typer(apps[name])


def _nothing() -> None:
    """In the place of a function that is not imported yet."""


def _callable(row: CommandRow) -> Callable[..., None]:
    module, _, name = row.target.partition(":")
    function: Callable[..., None] = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(function)
    config_type = hints[next(iter(hints))]
    if not (isinstance(config_type, type) and is_dataclass(config_type)):
        return function

    @with_options(config_type, positional=row.positional, environment=row.environment)
    def command(flags: Mapping[str, Any], file: Path | None) -> None:
        environment = os.environ if row.environment else places_of(config_type)
        function(load(config_type, flags=flags, file=file, environment=environment))

    return command
