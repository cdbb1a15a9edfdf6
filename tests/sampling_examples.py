"""A value for each field of `SamplingParams` that has to change an answer, whatever the engine.

A field without an example, or whose example changes nothing, fails a test of each engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from greenllm.core import Grammar, SamplingParams

# Drawn, so that what filters draws is seen; long enough for a stop and a penalty to count.
BASE: dict[str, Any] = {"seed": 1, "max_tokens": 24}
# Under its name in HTTP, which is older.
REFUSED_AS = {"grammar": "response_format"}
# Fields that change a token's logit before it is chosen. The others choose among logits, say when
# an answer ends, how many there are, or what is told of them.
ADJUST_LOGITS = {"repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"}


@dataclass(frozen=True)
class Example:
    """Without the field's value, and with it."""

    without: SamplingParams
    given: SamplingParams


def examples(eos: int) -> dict[str, Example]:
    """By field; `eos` is the model's end token."""
    ending = {"logit_bias": {eos: 100.0}}
    values: dict[str, tuple[Any, dict[str, Any]]] = {
        "temperature": (0.3, {}),
        "top_p": (0.1, {}),
        "top_k": (1, {}),
        "min_p": (0.9, {}),
        "repetition_penalty": (50.0, {}),
        "presence_penalty": (2.0, {}),
        "frequency_penalty": (2.0, {}),
        "logit_bias": ({5: 100.0}, {}),
        "seed": (2, {}),
        "stop": (("e",), {}),
        "stop_token_ids": ((5,), {"logit_bias": {5: 100.0}}),
        "min_tokens": (3, ending),
        "max_tokens": (3, {}),
        "ignore_eos": (True, ending),
        "n": (2, {}),
        "logprobs": (2, {}),
        "prompt_logprobs": (2, {}),
        "grammar": (Grammar("json_schema", '{"type": "object"}'), {}),
    }
    return {
        name: Example(SamplingParams(**BASE | rest), SamplingParams(**BASE | rest | {name: value}))
        for name, (value, rest) in values.items()
    }
