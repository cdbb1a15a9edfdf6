"""Writing a checkpoint: there as a whole or not at all. Not covered: sharded or pickled weights."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from greenllm.model.options import LoadOptions, resolve


def write_checkpoint(model: Any, base: str, output: Path, options: LoadOptions) -> int:
    """Write a model with its base's tokenizer; returns the bytes of its weights.

    Raises:
        OSError: it cannot be written.
    """
    fresh = output.parent / f".{output.name}-{secrets.token_hex(6)}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(fresh)
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(base), trust_remote_code=options.trust_remote_code
        )
        tokenizer.save_pretrained(fresh)
        os.rename(fresh, output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return sum(path.stat().st_size for path in output.glob("*.safetensors"))
