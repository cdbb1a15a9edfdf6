"""Options that several commands share, each declared once with the rules for its values.

Contract: a configuration is made of these groups and of its own fields; `panel` is the heading of
a group in `--help`. A group that exists is consistent in itself. Importing this loads no torch and
no sensor library.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greenllm.config import ConfigError, Options, option
from greenllm.core import MOST_DRAFTED, SpeculativeMethod
from greenllm.energy.meters.registry import AUTO, METER_NAMES, why_unknown

_LONGEST_FOR_WIDE_STEPS = 8192
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def default_data_dir() -> Path:
    """Where the ledger lives: XDG_DATA_HOME/greenllm, or ~/.local/share/greenllm."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "greenllm"


def default_cache_dir() -> Path:
    """Where quantized weights are kept: XDG_CACHE_HOME/greenllm, or ~/.cache/greenllm."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "greenllm"


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which model."""

    panel = "Model"

    model: str = option("bundled", "Model folder, hub id, or 'bundled'.")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """What computes."""

    panel = "Device"

    device: str = option("auto", "cpu, cuda, cuda:N or auto (CUDA where there is one).")

    def __post_init__(self) -> None:
        super().__post_init__()
        is_known = _DEVICE.fullmatch(self.device) is not None
        self.require(is_known, "device", "must be auto, cpu, cuda or cuda:N")

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs that compute where there is CUDA, in its order; none with `--device cpu`."""
        if self.device == "cpu":
            return ()
        return (self.device if self.device.startswith("cuda:") else "cuda:0",)


@dataclass(frozen=True, kw_only=True)
class ThreadOptions(Options):
    """Threads of torch, for commands that do not choose them by measuring."""

    panel = "Device"

    threads: int | None = option(None, "CPU threads; default is torch's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("threads")


@dataclass(frozen=True, kw_only=True)
class MeterOptions(Options):
    """How joules are counted."""

    panel = "Energy and carbon"

    meter: str = option(AUTO, f"{METER_NAMES}.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if fault := why_unknown(self.meter):
            raise ConfigError(f"--meter {self.meter}: {fault}", "meter")


@dataclass(frozen=True, kw_only=True)
class ReceiptOptions(MeterOptions):
    """How joules are counted for each request."""

    receipt_wait_s: float = option(
        0.15, "Longest wait for a counter; then the receipt is provisional."
    )
    roster: str = option(
        "auto",
        "Folder in which servers of this machine share its idle power: auto (the user's), off or a"
        " folder; replicas have one of their own.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.receipt_wait_s >= 0, "receipt_wait_s", "must not be negative")


@dataclass(frozen=True, kw_only=True)
class CarbonOptions(Options):
    """How joules become grams of CO2e."""

    panel = "Energy and carbon"

    zone: str = option("WORLD", "Grid zone for grams of CO2e: ISO code, country name or WORLD.")
    intensity_g_per_kwh: float | None = option(None, "Own grid intensity instead of the zone's.")
    intensity_source: str | None = option(None, "Source of an own intensity; required with it.")
    pue: float = option(1.0, "Power usage effectiveness of the site; enters the grams only.")

    def __post_init__(self) -> None:
        super().__post_init__()
        own = self.intensity_g_per_kwh
        self.require(own is None or own >= 0, "intensity_g_per_kwh", "must not be negative")
        self.require_together("intensity_g_per_kwh", "intensity_source")
        self.require_together("intensity_source", "intensity_g_per_kwh")
        self.require(self.pue >= 1, "pue", "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Where what must be kept is."""

    panel = "Folders"

    data_dir: Path | None = option(
        None, "Folder of the ledger and of adapters; default is the platform's."
    )

    @property
    def data_path(self) -> Path:
        """The data folder."""
        return self.data_dir or default_data_dir()

    @property
    def ledger_path(self) -> Path:
        """The ledger's file."""
        return self.data_path / "ledger.sqlite"

    @property
    def adapters_path(self) -> Path:
        """Where adapters live that are known without being loaded."""
        return self.data_path / "adapters"


@dataclass(frozen=True, kw_only=True)
class CacheOptions(Options):
    """Where what can be made again is."""

    panel = "Folders"

    cache_dir: Path | None = option(
        None, "Folder for quantized weights; default is the platform's."
    )

    @property
    def cache_path(self) -> Path:
        """Where quantized weights are kept between starts."""
        return self.cache_dir or default_cache_dir()


@dataclass(frozen=True, kw_only=True)
class WeightOptions(ModelOptions):
    """Which model, and how its weights are loaded."""

    served_model_name: str | None = option(
        None, "Official name of the model: for clients, receipts and metrics."
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
    max_context: int | None = option(None, "Longest prompt plus answer; default is the model's.")
    allow_pickle: bool = option(False, "Also load weights stored as pickle, which can run code.")
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")

    def __post_init__(self) -> None:
        super().__post_init__()
        longest = self.max_context
        self.require(longest is None or longest > 1, "max_context", "must be at least 2")


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(DataOptions):
    """LoRA adapters, beside those in the data folder."""

    panel = "Adapters"

    adapter_dirs: tuple[Path, ...] = option(
        (), "Folders adapters may be loaded from, comma-separated; DATA_DIR/adapters always is one."
    )
    adapter_cache_mb: float = option(1024.0, "Memory for adapters between uses, in megabytes.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.adapter_cache_mb >= 0, "adapter_cache_mb", "must not be negative")


@dataclass(frozen=True, kw_only=True)
class SpeculationOptions(Options):
    """Draft tokens and early exits."""

    panel = "Speculation"

    speculative: SpeculativeMethod = option(
        "off",
        "off, auto, prompt_lookup, draft_model or early_exit: how requests that do not choose"
        " get draft tokens.",
    )
    speculative_tokens: int = option(4, f"Draft tokens at a time, 1 to {MOST_DRAFTED}.")
    exit_layer: int | None = option(
        None,
        "Layers before the exit of early_exit and approximate answers; default is the trained"
        " exit nearest to a third.",
    )
    draft_model: str | None = option(
        None,
        "Smaller model with the same tokens, for draft_model: folder, hub id, or bundled-draft.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            1 <= self.speculative_tokens <= MOST_DRAFTED,
            "speculative_tokens",
            f"must be in [1, {MOST_DRAFTED}]",
        )
        self.require_above_zero("exit_layer")
        self.require(
            self.speculative != "draft_model" or self.draft_model is not None,
            "draft_model",
            "is needed for --speculative draft_model",
        )


@dataclass(frozen=True, kw_only=True)
class ProcessorOptions(DeviceOptions):
    """What computes, and how much of it."""

    tensor_parallel: int = option(
        1, "Devices that every layer of the model is spread over, with --engine vllm."
    )
    eager: bool = option(
        False, "On CUDA: launch every kernel of a step instead of replaying graphs."
    )
    threads: str = option(
        "auto",
        "CPU threads for the model: a number; auto: more only if 1.3 times faster, by batch"
        " size; eco: the number that needs the least CPU time.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("tensor_parallel")
        is_count = self.threads.isdecimal() and int(self.threads) > 0
        self.require(
            is_count or self.threads in ("auto", "eco"),
            "threads",
            "must be auto, eco or a number greater than 0",
        )

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs that compute where there is CUDA: the first ones, where it takes several."""
        if self.device == "cpu" or self.tensor_parallel == 1:
            return super().gpus
        return tuple(f"cuda:{i}" for i in range(self.tensor_parallel))


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """What runs the model, and how much at a time."""

    panel = "Engine"

    engine: Literal["auto", "native", "vllm"] = option(
        "auto", "auto (vllm on CUDA where it is installed, else native), native or vllm."
    )
    runner: Literal["auto", "torch", "openvino"] = option(
        "auto", "auto, torch or openvino; auto is openvino on CPUs for the models that it knows."
    )
    max_num_seqs: int = option(64, "Sequences in one batch, at most.")
    max_batch_tokens: int | None = option(
        None,
        "Tokens in one step, at most; longer prompts are chunked. Default is 512, on CUDA 2048 for"
        " contexts up to 8192.",
    )
    block_size: int | None = option(
        None, "Tokens in one KV cache block; default is 16 with torch, fixed with openvino."
    )
    kv_cache_gb: float = option(1.0, "Memory for keys and values, in gigabytes, at most.")
    kv_dtype: Literal["auto", "u8", "bfloat16", "float32"] = option(
        "auto", "auto, u8, bfloat16 or float32: keys and values of the openvino runner."
    )
    prefix_cache: bool = option(True, "Reuse keys and values of common prompt beginnings.")
    parse_special: bool = option(
        False,
        "Special tokens written in messages, such as <|im_end|>, are tokens; else they are text.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_zero("max_num_seqs", "block_size", "kv_cache_gb")
        self.require(
            self.max_batch_tokens is None or self.max_batch_tokens >= self.max_num_seqs,
            "max_batch_tokens",
            "must be at least max_num_seqs",
        )

    def step_tokens(self, *, on_gpu: bool, context_length: int) -> int:
        """Tokens in one step, at most; scores of a step grow with both, and stay in bounds."""
        is_wide = on_gpu and context_length <= _LONGEST_FOR_WIDE_STEPS
        return self.max_batch_tokens or max(2048 if is_wide else 512, self.max_num_seqs)


@dataclass(frozen=True, kw_only=True)
class EngineConfig(
    WeightOptions,
    ProcessorOptions,
    EngineOptions,
    AdapterOptions,
    SpeculationOptions,
    ReceiptOptions,
    CarbonOptions,
    CacheOptions,
):
    """Options of the engine: the model, how it is run, how it is metered."""
