"""A session of a process that answers requests: its ledger, opened, and its id there."""

from __future__ import annotations

import secrets
import time

from greenllm.core import GreenllmError
from greenllm.energy.ledger import Ledger
from greenllm.energy.meters.protocol import Meter
from greenllm.options import DataOptions


def open_ledger(config: DataOptions, meter: Meter, parameters: int) -> tuple[Ledger, str]:
    """Open the ledger and begin a session; returns its id too.

    Raises:
        GreenllmError: the folder cannot be made, or the file cannot be used.
    """
    path = config.ledger_path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the data folder {path.parent}: {error.strerror}"
        raise GreenllmError(message) from error
    ledger = Ledger(path)
    ledger.book_lost()
    session_id = f"s-{int(time.time()):x}-{secrets.token_hex(4)}"
    ledger.open_session(
        session_id, method=meter.method, measured=meter.measured, parameters=parameters
    )
    return ledger, session_id
