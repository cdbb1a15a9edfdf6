"""Green LLM inference and fine-tuning: every request comes back with its joules.

`LLM` and `SamplingParams` are loaded when they are first used: importing greenllm loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "Generation", "GreenllmError", "Receipt", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from greenllm.core import GreenllmError, SamplingParams
    from greenllm.energy.receipt import Receipt
    from greenllm.generation import Generation
    from greenllm.llm import LLM

_HOMES = {
    "LLM": "greenllm.llm",
    "Generation": "greenllm.generation",
    "GreenllmError": "greenllm.core",
    "Receipt": "greenllm.energy.receipt",
    "SamplingParams": "greenllm.core",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
