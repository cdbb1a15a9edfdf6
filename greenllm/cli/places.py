"""Where the ledger is, for commands that do not serve.

Contract: the folder given on the command line, else that of the environment, else the
platform's: the same order as for `greenllm serve`. Not covered: a TOML file given to `serve`.
"""

from __future__ import annotations

import os
from pathlib import Path

from greenllm.config import ENVIRONMENT_PREFIX, EngineConfig, load

_VARIABLE = ENVIRONMENT_PREFIX + "DATA_DIR"


def ledger_path(data_dir: Path | None = None) -> Path:
    """The ledger's file, whether or not it exists."""
    # Only this variable: a mistake in another one is no reason to refuse a report.
    environment = {key: value for key, value in os.environ.items() if key == _VARIABLE}
    config = load(EngineConfig, flags={"data_dir": data_dir}, environment=environment)
    return config.ledger_path
