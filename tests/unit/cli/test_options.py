"""The command line is made from the dataclass: every option, its type, its help and its default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from inspect import get_annotations
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from evals.evaluation_config import EvalConfig
from evals.profiling.config import ProfileConfig
from evals.tuning.config import TuneConfig
from finetune.compressing.config import CompressConfig
from finetune.recipe import Recipe
from greenllm.cli.app import app as greenllm_app
from greenllm.cli.estimate import EstimateOptions
from greenllm.cli.lazy import LazyCommand
from greenllm.cli.options import with_options
from greenllm.config import ConfigError, Options, flag, load
from greenllm.options import (
    CarbonOptions,
    DataOptions,
    DeviceOptions,
    MeterOptions,
    ModelOptions,
)
from serving.config import ServeConfig

Given = list[tuple[Mapping[str, Any], Path | None]]


@pytest.fixture(name="given")
def given_() -> Given:
    """What the command was called with."""
    return []


@pytest.fixture(name="app")
def app_(given: Given) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    @with_options(ServeConfig, positional="model")
    def serve(flags: Mapping[str, Any], config: Path | None) -> None:
        """Serve something."""
        given.append((flags, config))

    return app


def call(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    return click.unstyle(result.output)


def test_the_help_of_serve_shows_every_option() -> None:
    text = call(greenllm_app, "serve", "--help")
    for spec in fields(ServeConfig):
        named = re.compile(rf"env GREENLLM_{spec.name.upper()}\b")
        lines = [line for line in text.splitlines() if named.search(line)]
        assert len(lines) == 1, spec.name
        assert spec.metadata["help"] in lines[0]
        if spec.name != "model":
            assert f" {flag(spec.name)} " in lines[0]
        if spec.default not in (None, ()):
            assert f"default {spec.default})" in lines[0]
    assert " --config " in text
    assert "Serve a model" in text


def test_what_is_not_given_arrives_as_none(app: typer.Typer, given: Given) -> None:
    call(app)
    ((flags, config),) = given
    assert config is None
    assert dict(flags) == dict.fromkeys(spec.name for spec in fields(ServeConfig))
    assert load(ServeConfig, flags=flags) == ServeConfig()


def test_every_kind_of_option_is_parsed(app: typer.Typer, given: Given, tmp_path: Path) -> None:
    call(
        app,
        "some/model",
        *("--port", "9000"),
        *("--pue", "1.2"),
        *("--quantize", "int8"),
        *("--api-keys", "one,two"),
        *("--max-context", "128"),
        *("--data-dir", str(tmp_path)),
        *("--config", "there.toml"),
        "--no-prefix-cache",
        "--allow-pickle",
    )
    ((flags, config),) = given
    assert config == Path("there.toml")
    assert {name: value for name, value in flags.items() if value is not None} == {
        "model": "some/model",
        "port": 9000,
        "pue": 1.2,
        "quantize": "int8",
        "api_keys": "one,two",
        "max_context": 128,
        "data_dir": tmp_path,
        "prefix_cache": False,
        "allow_pickle": True,
    }
    loaded = load(ServeConfig, flags=flags)
    assert loaded.api_keys == ("one", "two")
    assert (loaded.quantize, loaded.prefix_cache, loaded.allow_pickle) == ("int8", False, True)


def test_a_wrong_choice_is_refused_by_the_config(app: typer.Typer, given: Given) -> None:
    call(app, "--dtype", "float8")
    with pytest.raises(ConfigError, match=r"^--dtype must be one of auto, float32"):
        load(ServeConfig, flags=given[0][0])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--port", "many"), "--port"),
        (("--pue", "high"), "--pue"),
        (("--unknown", "1"), "--unknown"),
        (("one", "two"), "two"),
    ],
)
def test_what_cannot_be_parsed_is_a_usage_error(
    app: typer.Typer, given: Given, arguments: tuple[str, ...], complaint: str
) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "250"})
    assert result.exit_code == 2
    assert complaint in click.unstyle(result.output)
    assert given == []


def test_the_command_keeps_its_name_and_help(app: typer.Typer) -> None:
    (command,) = app.registered_commands
    assert command.callback is not None
    assert command.callback.__name__ == "serve"
    assert "Serve something." in call(app, "--help")


def test_without_a_positional_every_field_is_a_flag() -> None:
    seen: list[Mapping[str, Any]] = []
    app = typer.Typer(add_completion=False)

    @app.command()
    @with_options(ServeConfig)
    def serve(flags: Mapping[str, Any], config: Path | None) -> None:
        seen.append(flags)

    call(app, "--model", "mine")
    assert seen[0]["model"] == "mine"


def declaring(config_type: type, name: str) -> type:
    """The class whose field it is."""
    return next(one for one in config_type.__mro__ if name in get_annotations(one))


def test_what_commands_share_is_declared_once() -> None:
    configs: list[type[Options]] = [
        ServeConfig,
        Recipe,
        CompressConfig,
        EvalConfig,
        ProfileConfig,
        TuneConfig,
        EstimateOptions,
    ]
    for group in (ModelOptions, MeterOptions, CarbonOptions, DeviceOptions, DataOptions):
        for spec in fields(group):
            users = [one for one in configs if spec.name in {own.name for own in fields(one)}]
            assert len(users) > 1
            assert {declaring(one, spec.name) for one in users} == {group}, spec.name


@pytest.mark.parametrize("command", ["serve", "finetune"])
def test_help_shows_options_in_groups(command: str) -> None:
    text = call(greenllm_app, command, "--help")
    titles = re.findall(r"╭─ ([\w ]+) ─", text)
    assert len(titles) == len(set(titles)) > 6
    energy = text.partition("─ Energy and carbon ─")[2].partition("╰─")[0]
    assert all(name in energy for name in ("--meter", "--zone", "--pue"))
    assert "--model" not in energy
    options = text.partition("─ Options ─")[2].partition("╰─")[0]
    assert set(re.findall(r"--[a-z]\S+", options)) == {"--config", "--help"}


def test_plain_help_has_the_same_groups() -> None:
    command = typer.main.get_command(greenllm_app)
    assert isinstance(command, TyperGroup)
    lazy = command.commands["serve"]
    assert isinstance(lazy, LazyCommand)
    whole = lazy.load()
    whole.rich_markup_mode = None
    text = whole.get_help(typer.Context(whole, info_name="serve"))
    headings = re.findall(r"^([A-Z][\w ]+):$", text, re.MULTILINE)
    for heading in ("Model", "Engine", "Speculation", "Energy and carbon", "HTTP", "Replicas"):
        assert headings.count(heading) == 1


@pytest.mark.parametrize(
    ("command", "own"),
    [("tune", "--space"), ("compress", "--layers"), ("profile", "--rounds"), ("estimate", "--pue")],
)
def test_a_commands_own_options_are_not_in_the_groups_it_shares(command: str, own: str) -> None:
    text = call(greenllm_app, command, "--help")
    options = text.partition("─ Options ─")[2].partition("╰─")[0]
    assert (own in options) == (own != "--pue")
    assert text.count(f" {own} ") == 1
