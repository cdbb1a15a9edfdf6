"""Options: each declared once, as a field of a frozen dataclass with its help text.

A value comes from, last wins: the field's default, a TOML file, the environment (`GREENLLM_` and
the field's name in capitals), a flag. A key that is no option is an error. The command line is
generated from the same fields.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from greenllm.core import MOST_DRAFTED, GreenllmError, SpeculativeMethod

ENVIRONMENT_PREFIX = "GREENLLM_"
TEST_PREFIX = "GREENLLM_TEST_"
_LONGEST_FOR_WIDE_STEPS = 8192
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
T = TypeVar("T")


class ConfigError(GreenllmError):
    """An option is unknown or its value is not allowed; the message names it."""


def option(default: Any, help_text: str) -> Any:
    """Declare an option."""
    return field(default=default, metadata={"help": help_text})


def default_data_dir() -> Path:
    """Where the ledger lives: XDG_DATA_HOME/greenllm, or ~/.local/share/greenllm."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "greenllm"


def default_cache_dir() -> Path:
    """Where quantized weights are kept: XDG_CACHE_HOME/greenllm, or ~/.cache/greenllm."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "greenllm"


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Options of the engine: the model, how it is run, how it is metered."""

    model: str = option("bundled", "Model folder, hub id, or 'bundled'.")
    served_model_name: str | None = option(None, "Name clients use for the model.")
    engine: Literal["auto", "native", "vllm"] = option(
        "auto", "auto (vllm on CUDA where it is installed, else native), native or vllm."
    )
    runner: Literal["auto", "torch", "openvino"] = option(
        "auto", "auto, torch or openvino; auto is openvino on CPUs where it knows the model."
    )
    quantize: Literal["none", "int8", "int4", "nf4", "fp8"] = option(
        "none",
        "none, int8, int4 (openvino), nf4 (torch, vllm) or fp8 (vllm on CUDA): quantize weights"
        " while loading; torch does it with bitsandbytes.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "auto, float32, bfloat16 or float16; auto is bfloat16 on GPUs, and on CPUs that compute it"
        " for weights that the openvino runner quantizes, else float32.",
    )
    device: str = option("auto", "cpu, cuda, cuda:N or auto (CUDA where there is one).")
    tensor_parallel: int = option(
        1, "Devices that every layer of the model is spread over, with --engine vllm."
    )
    eager: bool = option(False, "On CUDA: launch every kernel of a step, replay no graphs.")
    threads: str = option(
        "auto",
        "CPU threads for the model: a number; auto: more only where 1.3 times faster, by batch"
        " size; eco: what needs the least CPU time.",
    )
    max_context: int | None = option(None, "Longest prompt plus answer; default is the model's.")
    max_num_seqs: int = option(64, "Sequences in one batch, at most.")
    max_batch_tokens: int | None = option(
        None,
        "Tokens in one step, at most; longer prompts are chunked. Default is 512, on CUDA 2048 for"
        " contexts up to 8192.",
    )
    block_size: int | None = option(
        None, "Tokens in one KV cache block; 16 with torch, openvino's is fixed."
    )
    kv_cache_gb: float = option(1.0, "Memory for keys and values, in gigabytes, at most.")
    kv_dtype: Literal["auto", "u8", "bfloat16", "float32"] = option(
        "auto", "auto, u8, bfloat16 or float32: keys and values of the openvino runner."
    )
    prefix_cache: bool = option(True, "Reuse keys and values of common prompt beginnings.")
    allow_pickle: bool = option(False, "Also load weights stored as pickle, which can run code.")
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    adapter_dirs: tuple[Path, ...] = option(
        (), "Folders adapters may be loaded from, comma-separated; DATA_DIR/adapters always is one."
    )
    adapter_cache_mb: float = option(1024.0, "Memory for adapters between uses, in megabytes.")
    speculative: SpeculativeMethod = option(
        "off",
        "off, auto, prompt_lookup, draft_model or early_exit: who guesses the next tokens of"
        " requests that do not say.",
    )
    speculative_tokens: int = option(4, f"Tokens guessed at a time, 1 to {MOST_DRAFTED}.")
    exit_layer: int | None = option(
        None,
        "Layers of early_exit and approximate answers; default is the trained exit near a third.",
    )
    draft_model: str | None = option(
        None,
        "Smaller model with the same tokens, for draft_model: folder, hub id, or bundled-draft.",
    )
    meter: str = option("auto", "auto, nvml, rapl, hwmon, modelled or replay:FILE.")
    zone: str = option("WORLD", "Grid zone for grams of CO2e: ISO code, country name or WORLD.")
    intensity_g_per_kwh: float | None = option(None, "Own grid intensity instead of the zone's.")
    intensity_source: str | None = option(None, "Who says so; required with an own intensity.")
    pue: float = option(1.0, "Power usage effectiveness of the site; enters the grams only.")
    receipt_wait_s: float = option(0.15, "Longest wait for a counter, then provisional.")
    data_dir: Path | None = option(None, "Folder of the ledger; default is the platform's.")
    cache_dir: Path | None = option(
        None, "Folder for quantized weights; default is the platform's."
    )

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "block_size", "kv_cache_gb", "tensor_parallel"):
            value = getattr(self, name)
            self._require(value is None or value > 0, name, "must be greater than 0")
        self._require(self.adapter_cache_mb >= 0, "adapter_cache_mb", "must not be negative")
        self._require(
            self.threads in ("auto", "eco") or (self.threads.isdecimal() and int(self.threads) > 0),
            "threads",
            "must be auto, eco or a number greater than 0",
        )
        self._require(
            self.max_batch_tokens is None or self.max_batch_tokens >= self.max_num_seqs,
            "max_batch_tokens",
            "must be at least max_num_seqs",
        )
        self._require(
            self.max_context is None or self.max_context > 1, "max_context", "must be at least 2"
        )
        self._require_speculation()
        self._require(self.pue >= 1, "pue", "must be at least 1")
        self._require(self.receipt_wait_s >= 0, "receipt_wait_s", "must not be negative")
        self._require(
            _DEVICE.fullmatch(self.device) is not None,
            "device",
            "must be auto, cpu, cuda or cuda:N",
        )
        own = self.intensity_g_per_kwh
        self._require(own is None or own >= 0, "intensity_g_per_kwh", "must not be negative")
        self._require_together("intensity_g_per_kwh", "intensity_source")
        self._require_together("intensity_source", "intensity_g_per_kwh")

    def _require_together(self, name: str, other: str) -> None:
        if getattr(self, name) is not None and getattr(self, other) is None:
            raise ConfigError(f"{flag(name)} needs {flag(other)}")

    def _require_speculation(self) -> None:
        self._require(
            1 <= self.speculative_tokens <= MOST_DRAFTED,
            "speculative_tokens",
            f"must be in [1, {MOST_DRAFTED}]",
        )
        layer = self.exit_layer
        self._require(layer is None or layer > 0, "exit_layer", "must be greater than 0")
        self._require(
            self.speculative != "draft_model" or self.draft_model is not None,
            "draft_model",
            "is needed for --speculative draft_model",
        )

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{flag(name)} {rule} (got {getattr(self, name)})")

    def step_tokens(self, *, on_gpu: bool, context_length: int) -> int:
        """Tokens in one step, at most; scores of a step grow with both, and stay in bounds."""
        is_wide = on_gpu and context_length <= _LONGEST_FOR_WIDE_STEPS
        return self.max_batch_tokens or max(2048 if is_wide else 512, self.max_num_seqs)

    @property
    def data_path(self) -> Path:
        """The data folder."""
        return self.data_dir or default_data_dir()

    @property
    def ledger_path(self) -> Path:
        """The ledger's file."""
        return self.data_path / "ledger.sqlite"

    @property
    def cache_path(self) -> Path:
        """Where quantized weights are kept between starts."""
        return self.cache_dir or default_cache_dir()

    @property
    def adapters_path(self) -> Path:
        """Where adapters live that are known without being loaded."""
        return self.data_path / "adapters"


def flag(name: str) -> str:
    """Command-line spelling of an option."""
    return "--" + name.replace("_", "-")


def load(
    config_type: type[T],
    *,
    flags: Mapping[str, Any],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> T:
    """Build a configuration from all its sources; `flags` that are None were not given.

    Raises:
        ConfigError: an unknown key, a wrong type or a forbidden value.
    """
    known = {f.name: f for f in fields(typing.cast(Any, config_type))}
    hints = typing.get_type_hints(config_type)
    values: dict[str, Any] = {}
    for name, value in _from_file(file).items():
        if name not in known:
            raise ConfigError(f"{file}: unknown option {name!r}")
        values[name] = convert(f"{file}: {name}", value, hints[name])
    names = {ENVIRONMENT_PREFIX + name.upper() for name in known}
    for key in environment or {}:
        is_ours = key.startswith(ENVIRONMENT_PREFIX) and not key.startswith(TEST_PREFIX)
        if is_ours and key not in names:
            raise ConfigError(f"{key}: no such option")
    for name in known:
        key = ENVIRONMENT_PREFIX + name.upper()
        if environment and key in environment:
            values[name] = convert(key, environment[key], hints[name])
    for name, value in flags.items():
        if value is not None:
            values[name] = convert(flag(name), value, hints[name])
    return config_type(**values)


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from error


def convert(where: str, value: Any, hint: Any) -> Any:
    """Turn text or a TOML value into an option's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(arguments)}, not {value!r}")
        return value
    if origin in (types.UnionType, typing.Union):
        hint = next(a for a in arguments if a is not type(None))
        return None if value is None else convert(where, value, hint)
    if origin is tuple:
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        return tuple(convert(where, item, arguments[0]) for item in items if item != "")
    return _convert_scalar(where, value, hint)


def _convert_scalar(where: str, value: Any, hint: Any) -> Any:
    if hint is bool:
        return _convert_bool(where, value)
    wrong = f"{where} must be of type {hint.__name__}, not {value!r}"
    if isinstance(value, (bool, list, dict)) or (hint is int and isinstance(value, float)):
        raise ConfigError(wrong)
    try:
        converted = hint(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(wrong) from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ConfigError(f"{where} must be finite, not {value!r}")
    return converted


def _convert_bool(where: str, value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ConfigError(f"{where} must be true or false, not {value!r}")


def default_of(spec: Field[Any]) -> Any:
    """Default of a declared option."""
    return None if spec.default is MISSING else spec.default
