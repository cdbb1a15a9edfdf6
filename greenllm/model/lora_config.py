"""`adapter_config.json`, as PEFT writes it: what changes the sum an adapter adds, or a refusal.

Contract: an option that changes what the adapter computes is either honoured or refused by name;
options that only matter for training are not looked at. The file is a regular one of a few
megabytes at most. Not covered: other methods than LoRA.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from greenllm.core import GreenllmError
from greenllm.given_files import MOST_SETTINGS_BYTES, read_text
from greenllm.model.lora_patterns import (
    LONGEST_KEY,
    MOST_EXPRESSIONS,
    Patterns,
    is_name,
    is_safe,
    patterns,
)

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
    """What is needed to turn two matrices into a sum."""

    rank: int
    alpha: float
    rank_stabilized: bool
    ranks: Patterns[int]
    alphas: Patterns[float]
    base: str

    def rank_of(self, path: str) -> int:
        """Rank of one module."""
        return self.ranks.of(path, self.rank)

    def scale_of(self, path: str) -> float:
        """What one module's product is multiplied by."""
        rank = self.rank_of(path)
        alpha = self.alphas.of(path, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


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
        ranks=_patterns(found, "rank_pattern", path, _rank),
        alphas=_patterns(found, "alpha_pattern", path, _number),
        base=str(found.get("base_model_name_or_path") or ""),
    )
    return config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path, MOST_SETTINGS_BYTES))
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


def _patterns(
    found: Mapping[str, Any], name: str, path: Path, value_of: Callable[[Any, str], T]
) -> Patterns[T]:
    given = found.get(name) or {}
    if not isinstance(given, dict):
        raise AdapterError(f"{path}: {name} must be an object")
    _refuse_unsafe(given, f"{path}: {name}")
    return patterns({key: value_of(one, f"{path}: {name}[{key!r}]") for key, one in given.items()})


def _refuse_unsafe(keys: Mapping[str, Any], where: str) -> None:
    for key in keys:
        if not is_safe(key):
            raise AdapterError(
                f"{where}: {key[:LONGEST_KEY]!r} is no pattern that is searched here: a module's"
                " name or the end of its path, with '.', '\\d' and one '*' or '+'; name the"
                f" modules one by one, or {MERGE_HINT}"
            )
    if sum(not is_name(key) for key in keys) > MOST_EXPRESSIONS:
        raise AdapterError(
            f"{where} may hold {MOST_EXPRESSIONS} expressions at most beside names of modules"
        )


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
