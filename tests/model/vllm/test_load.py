"""Options that vLLM does not have are refused by name, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from greenllm.config import ConfigError
from greenllm.options import EngineConfig
from greenllm.vllm.load import check_options


@pytest.mark.parametrize(
    "options",
    [
        {"runner": "torch"},
        {"kv_dtype": "u8"},
        {"exit_layer": 3},
        {"threads": "eco"},
        {"allow_pickle": True},
    ],
)
def test_options_that_vllm_does_not_have(options: dict[str, Any]) -> None:
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(ConfigError, match=rf"^--{name} cannot be combined with --engine vllm: "):
        check_options(EngineConfig(**options))


def test_others_are_taken() -> None:
    check_options(EngineConfig(threads="3", quantize="int8", speculative="prompt_lookup"))
