"""The parts that whole answers and streams share."""

from __future__ import annotations

from typing import Any

from greenllm.core import Request
from greenllm.energy.receipt import Receipt
from serving.receipts import energy_object


def mark(request: Request) -> dict[str, Any]:
    """What says of an answer that it may not be the whole model's."""
    return {} if request.approximation is None else {"approximate": True}


def usage(receipt: Receipt) -> dict[str, Any]:
    """OpenAI's usage object, with the energy."""
    return {
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.completion_tokens,
        "total_tokens": receipt.prompt_tokens + receipt.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": receipt.cached_tokens},
        "energy": energy_object(receipt),
    }
