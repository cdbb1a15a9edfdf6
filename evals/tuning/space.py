"""Which settings there are: options of `greenllm serve` with the values to try.

    quantize=none,int8;threads=auto,1;speculative=off,auto

Contract: the first value of each option is where the search begins. What requests can say for
themselves (`PER_REQUEST`) needs no server of its own.

Not covered: values that exclude each other, which the server refuses and the search leaves out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from greenllm.config import ConfigError, flag
from greenllm.options import EngineConfig

PER_REQUEST = ("speculative",)
DEFAULT = (
    "quantize=none,int8,int4;kv_dtype=auto,u8;threads=auto,1,eco;speculative=off,auto,early_exit"
)
Space = Mapping[str, tuple[str, ...]]
Server = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for every option of the space, in its order."""

    values: tuple[tuple[str, str], ...]

    @property
    def server(self) -> Server:
        """What a server has to be started with."""
        return tuple(pair for pair in self.values if pair[0] not in PER_REQUEST)

    @property
    def request(self) -> dict[str, str]:
        """What requests say."""
        return {name: value for name, value in self.values if name in PER_REQUEST}

    def options(self) -> list[str]:
        """The server's part as command line options."""
        return options_of(self.server)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.values)


def options_of(server: Server) -> list[str]:
    """As command line options."""
    return [word for name, value in server for word in (flag(name), value)]


def parse_space(text: str) -> Space:
    """Options and values.

    Raises:
        ConfigError: it is written otherwise, or there is no such option.
    """
    space: dict[str, tuple[str, ...]] = {}
    for part in text.split(";"):
        name, equals, rest = part.strip().partition("=")
        name = name.strip().replace("-", "_")
        values = tuple(value.strip() for value in rest.split(","))
        if not equals or not all(values):
            raise ConfigError(f"--space: {part.strip()!r} must be like threads=1,2")
        if name not in EngineConfig.__dataclass_fields__:
            raise ConfigError(f"--space: greenllm serve has no option {flag(name)}")
        if name in space or len(set(values)) < len(values):
            raise ConfigError(f"--space: {name} or one of its values is there twice")
        space[name] = values
    return space


def first_of(space: Space) -> Setting:
    """Where the search begins."""
    return Setting(tuple((name, values[0]) for name, values in space.items()))


def all_of(space: Space) -> list[Setting]:
    """Every setting."""
    products = itertools.product(*space.values())
    return [Setting(tuple(zip(space, values, strict=True))) for values in products]


def changed(setting: Setting, name: str, value: str) -> Setting:
    """The same but for one option."""
    return Setting(tuple((n, value if n == name else v) for n, v in setting.values))


def single_changes(space: Space) -> list[Setting]:
    """The first setting, and all that differ from it in one option."""
    first = first_of(space)
    others = [changed(first, name, value) for name, values in space.items() for value in values[1:]]
    return [first, *others]


def by_server(settings: Sequence[Setting]) -> list[list[int]]:
    """Places of settings that one server can serve."""
    groups: dict[Server, list[int]] = {}
    for place, setting in enumerate(settings):
        groups.setdefault(setting.server, []).append(place)
    return list(groups.values())
