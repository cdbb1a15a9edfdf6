"""Where the ledger, the adapters, the keys and the cache are, and where results may go.

Contract: the folder given on the command line, else that of the environment, else the
platform's: the same order as for `greenllm serve`. Results go where nothing is. Not covered: a TOML
file given to `serve`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from greenllm.config import ConfigError, load, variable
from greenllm.options import CacheOptions, DataOptions

# Every command reads these; what else is in the environment is the server's, mistakes too.
PLACES = ("data_dir", "cache_dir", "keys_file")


def ledger_path(data_dir: Path | None = None) -> Path:
    """The ledger's file, whether or not it exists."""
    return _data(data_dir).ledger_path


def adapters_path(data_dir: Path | None = None) -> Path:
    """The folder of adapters, whether or not it exists."""
    return _data(data_dir).adapters_path


def calibration_path() -> Path:
    """The file of this machine's calibration, whether or not it exists.

    It is the machine's and not a ledger's: `--data-dir` does not move it, the environment does.
    """
    return _data(None).data_path / "calibration.json"


def cache_path() -> Path:
    """The folder of what can be made again, whether or not it exists."""
    return load(CacheOptions, flags={}, environment=places_of(CacheOptions)).cache_path


def places_of(config_type: type[Any]) -> Mapping[str, str]:
    """Those variables of the environment that say where things are, as far as a config asks."""
    names = {spec.name for spec in fields(config_type)}
    wanted = [variable(name) for name in PLACES if name in names]
    return {key: os.environ[key] for key in wanted if key in os.environ}


def _data(data_dir: Path | None) -> DataOptions:
    return load(DataOptions, flags={"data_dir": data_dir}, environment=places_of(DataOptions))


def require_fresh(folder: Path) -> None:
    """Refuse a folder for results that has something in it.

    Raises:
        ConfigError: it is no folder, or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output {folder} is there already; name another folder", "output")
