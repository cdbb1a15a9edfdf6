"""`adapter_config.json`, as PEFT writes it: what changes the sum an adapter adds, or a refusal.

Contract: an option that changes what the adapter computes is either honoured or refused by name;
options that only matter for training are not looked at. Not covered: other methods than LoRA.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from greenllm.core import GreenllmError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_RANK = 256
T = TypeVar("T")
MERGE_HINT = "merge it into its base with `greenllm adapters merge` and serve the result"
# What these say is honoured below, checked elsewhere, or over once training is.
_READ = frozenset(
    [
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "init_lora_weights",
        "base_model_name_or_path",
        "task_type",
        "auto_mapping",
        "peft_version",
        "revision",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "lora_dropout",
        "fan_in_fan_out",
        "layers_to_transform",
        "layers_pattern",
        "megatron_core",
        "eva_config",
        "qalora_group_size",
        "runtime_config",
    ]
)
# Other initialisations change the base's weights too, so the file alone is not the adapter.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


class AdapterError(GreenllmError):
    """An adapter cannot be used; the message says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What is needed to turn two matrices into a sum; patterns are PEFT's, by end of path."""

    rank: int
    alpha: float
    rank_stabilized: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base: str

    def rank_of(self, path: str) -> int:
        """Rank of one module."""
        return _by_pattern(self.rank_pattern, path, self.rank)

    def scale_of(self, path: str) -> float:
        """What one module's product is multiplied by."""
        rank = self.rank_of(path)
        alpha = _by_pattern(self.alpha_pattern, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def _by_pattern(pattern: Mapping[str, T], path: str, default: T) -> T:
    """The first pattern that matches the end of a path, as PEFT looks it up."""
    return next((pattern[key] for key in pattern if re.match(rf"(.*\.)?({key})$", path)), default)


def read_config(folder: Path) -> LoraConfig:
    """Read and check a config.

    Raises:
        AdapterError: there is none, or it asks for something that is not plain LoRA.
    """
    path = folder / CONFIG_NAME
    found = _read_object(path)
    _refuse_unsupported(found, path)
    config = LoraConfig(
        rank=_rank(found.get("r"), f"{path}: r"),
        alpha=_number(found.get("lora_alpha"), f"{path}: lora_alpha"),
        rank_stabilized=_boolean(found.get("use_rslora", False), f"{path}: use_rslora"),
        rank_pattern={
            key: _rank(value, f"{path}: rank_pattern[{key!r}]")
            for key, value in _pattern(found, "rank_pattern", path).items()
        },
        alpha_pattern={
            key: _number(value, f"{path}: alpha_pattern[{key!r}]")
            for key, value in _pattern(found, "alpha_pattern", path).items()
        },
        base=str(found.get("base_model_name_or_path") or ""),
    )
    return config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterError(
            f"{path.parent} has no {path.name}: not an adapter folder as PEFT writes it"
        ) from error
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise AdapterError(f"{path} holds no JSON object")
    return found


def _refuse_unsupported(found: Mapping[str, Any], path: Path) -> None:
    kind = found.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{path}: peft_type is {kind!r}; only LORA adapters are served")
    if found.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is {found['bias']!r}, only 'none' is; {MERGE_HINT}")
    start = found.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise AdapterError(f"{path}: init_lora_weights {start!r} changes the base; {MERGE_HINT}")
    for name, value in found.items():
        if name not in _READ and value not in (None, False, [], {}, ""):
            raise AdapterError(f"{path}: {name} is not supported by the server; {MERGE_HINT}")


def _pattern(found: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    pattern = found.get(name) or {}
    if not isinstance(pattern, dict):
        raise AdapterError(f"{path}: {name} must be an object")
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise AdapterError(f"{path}: {name}: {key!r} is no pattern: {error}") from error
    return pattern


def _rank(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        raise AdapterError(f"{where} must be a whole number in [1, {MAX_RANK}], not {value!r}")
    return value


def _number(value: Any, where: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise AdapterError(f"{where} must be a finite number, not {value!r}")
    return float(value)


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise AdapterError(f"{where} must be true or false, not {value!r}")
    return value
