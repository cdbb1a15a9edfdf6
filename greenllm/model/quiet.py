"""Keeps libraries from talking in between: progress bars, and warnings nobody here can act on.

Contract: call it before transformers, peft or bitsandbytes are imported; none of them is here.
Errors are still told.
"""

from __future__ import annotations

import logging
import os

_CASTS = "bitsandbytes.autograd._functions"
_CPU_KERNELS = "bitsandbytes.backends.cpu.ops"
_ADVICE = "Failed to load CPU gemm_4bit_forward"


def hush_libraries() -> None:
    """Progress bars and advice of libraries are not part of a command's output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    hush_bitsandbytes()


def hush_bitsandbytes() -> None:
    """Two warnings: of casts to float16 in every layer of every step, and of a missing kernel.

    The kernel is code that would be fetched from the hub when bitsandbytes is imported.
    """
    logging.getLogger(_CASTS).setLevel(logging.ERROR)
    logging.getLogger(_CPU_KERNELS).addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_ADVICE)
