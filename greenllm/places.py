"""Where the ledger, the adapters and the cache are, and where results may go.

Contract: the folder given on the command line, else that of the environment, else the
platform's: the same order as for `greenllm serve`. Results go where nothing is. Not covered: a TOML
file given to `serve`.
"""

from __future__ import annotations

import os
from pathlib import Path

from greenllm.config import ENVIRONMENT_PREFIX, ConfigError, EngineConfig, load

PLACES = (ENVIRONMENT_PREFIX + "DATA_DIR", ENVIRONMENT_PREFIX + "CACHE_DIR")


def ledger_path(data_dir: Path | None = None) -> Path:
    """The ledger's file, whether or not it exists."""
    return _config(data_dir).ledger_path


def adapters_path(data_dir: Path | None = None) -> Path:
    """The folder of adapters, whether or not it exists."""
    return _config(data_dir).adapters_path


def cache_path() -> Path:
    """The folder of what can be made again, whether or not it exists."""
    return _config(None).cache_path


def _config(data_dir: Path | None) -> EngineConfig:
    # Only these variables: a mistake in another one is no reason to refuse a report.
    environment = {key: value for key, value in os.environ.items() if key in PLACES}
    return load(EngineConfig, flags={"data_dir": data_dir}, environment=environment)


def require_fresh(folder: Path) -> None:
    """Refuse a folder for results that has something in it.

    Raises:
        ConfigError: it is no folder, or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output {folder} is there already; name another folder")
