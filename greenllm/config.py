"""Options: each declared once, as a field of a frozen dataclass with its help text.

A value comes from, last wins: the field's default, a TOML file, the environment (`GREENLLM_` and
the field's name in capitals), a flag. A key that is no option is an error. The command line is
generated from the same fields.
"""

from __future__ import annotations

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from greenllm.core import GreenllmError

ENVIRONMENT_PREFIX = "GREENLLM_"
TEST_PREFIX = "GREENLLM_TEST_"
LARGEST_FILE_BYTES = 1_000_000
T = TypeVar("T")


class ConfigError(GreenllmError):
    """An option is unknown or its value is not allowed; the message says which and why.

    `option` is the name of the field, where the error is about one.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


def option(default: Any, help_text: str) -> Any:
    """Declare an option."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every configuration, and of each group of options that several share.

    `panel` is the heading under which help shows the options of a class, and of those that extend
    it without a heading of their own.
    """

    panel: ClassVar[str] = "Options"

    def __post_init__(self) -> None:
        """Check the values; each class checks its own and calls this for the others."""

    def require(self, holds: bool, name: str, rule: str) -> None:
        """Refuse an option's value unless the rule holds.

        Raises:
            ConfigError: it does not.
        """
        if not holds:
            raise ConfigError(f"{flag(name)} {rule} (got {getattr(self, name)})", name)

    def require_above_zero(self, *names: str) -> None:
        """Refuse zero and less, where there is a value.

        Raises:
            ConfigError: one is not above zero.
        """
        for name in names:
            value = getattr(self, name)
            self.require(value is None or value > 0, name, "must be greater than 0")

    def require_together(self, name: str, other: str) -> None:
        """Refuse an option without the one that it needs.

        Raises:
            ConfigError: the other is missing.
        """
        if getattr(self, name) is not None and getattr(self, other) is None:
            raise ConfigError(f"{flag(name)} needs {flag(other)}", name)


def flag(name: str) -> str:
    """Command-line spelling of an option."""
    return "--" + name.replace("_", "-")


def load(
    config_type: type[T],
    *,
    flags: Mapping[str, Any],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> T:
    """Build a configuration from all its sources; `flags` that are None were not given.

    Raises:
        ConfigError: an unknown key, a wrong type or a forbidden value.
    """
    names = [spec.name for spec in fields(typing.cast(Any, config_type))]
    hints = typing.get_type_hints(config_type)
    values: dict[str, Any] = {}

    def take(name: str, where: str, value: Any) -> None:
        try:
            values[name] = convert(where, value, hints[name])
        except ConfigError as error:
            raise ConfigError(str(error), name) from error

    for name, value in _from_file(file).items():
        if name not in names:
            raise ConfigError(f"{file}: unknown option {name!r}{_nearest(name, names)}")
        take(name, f"{file}: {name}", value)
    for key, name in _variables(environment or {}, names).items():
        take(name, key, (environment or {})[key])
    for name, value in flags.items():
        if name not in names:
            raise ConfigError(f"unknown option {name!r}{_nearest(name, names)}")
        if value is not None:
            take(name, flag(name), value)
    return config_type(**values)


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: the one that was perhaps meant."""
    found = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def variable(name: str) -> str:
    """The environment variable of an option."""
    return ENVIRONMENT_PREFIX + name.upper()


def _variables(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Options by their variables in the environment; ours that are no option are mistakes."""
    known = {variable(name): name for name in names}
    for key in environment:
        is_ours = key.startswith(ENVIRONMENT_PREFIX) and not key.startswith(TEST_PREFIX)
        if is_ours and key not in known:
            raise ConfigError(f"{key}: no such option{_nearest(key, known)}")
    return {key: name for key, name in known.items() if key in environment}


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        with file.open("rb") as source:
            raw = source.read(LARGEST_FILE_BYTES + 1)
        if len(raw) > LARGEST_FILE_BYTES:
            raise ConfigError(f"{file}: a file of options has {LARGEST_FILE_BYTES} bytes at most")
        return tomllib.loads(raw.decode("utf-8"))
    except RecursionError as error:
        raise ConfigError(f"{file}: the brackets are nested too deeply") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from error


def convert(where: str, value: Any, hint: Any) -> Any:
    """Turn text or a TOML value into an option's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(arguments)}, not {value!r}")
        return value
    if origin in (types.UnionType, typing.Union):
        hint = next(a for a in arguments if a is not type(None))
        return None if value is None else convert(where, value, hint)
    if origin is tuple:
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        return tuple(convert(where, item, arguments[0]) for item in items if item != "")
    return _convert_scalar(where, value, hint)


def _convert_scalar(where: str, value: Any, hint: Any) -> Any:
    if hint is bool:
        return _convert_bool(where, value)
    wrong = f"{where} must be of type {hint.__name__}, not {value!r}"
    if isinstance(value, (bool, list, dict)) or (hint is int and isinstance(value, float)):
        raise ConfigError(wrong)
    try:
        converted = hint(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(wrong) from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ConfigError(f"{where} must be finite, not {value!r}")
    return converted


def _convert_bool(where: str, value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ConfigError(f"{where} must be true or false, not {value!r}")


def default_of(spec: Field[Any]) -> Any:
    """Default of a declared option."""
    return None if spec.default is MISSING else spec.default
