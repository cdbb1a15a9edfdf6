"""A model's first layers with its last norm and head, as a checkpoint of its own.

Early exit drafts with these layers. As a checkpoint they are a draft model, also for engines that
always run all layers. If the exit was not trained, few of its draft tokens are accepted.

Contract: the weights are the model's, in its precision. The output is there as a whole or not at
all; pickled weights are read only if the options allow it.

Not covered: models that are quantized on disk; models of several parts, such as those with vision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from greenllm.model.checkpoint import write_checkpoint
from greenllm.model.info import LoadError
from greenllm.model.loader import load_config
from greenllm.model.options import LoadOptions, resolve

# What config.json says of exits is about a model that goes on after them.
_EXIT_KEYS = ("greenllm_exit_layers", "greenllm_exit_thresholds")


@dataclass(frozen=True, slots=True)
class Truncated:
    """What was made: parameters, and bytes of weights."""

    parameters: int
    weight_bytes: int


def num_layers_of(model: str, options: LoadOptions) -> int:
    """How many layers a model has.

    Raises:
        LoadError: its config.json does not say, or cannot be read.
    """
    return int(_flat_config(model, options).num_hidden_layers)


def truncate(model: str, num_layers: int, output: Path, options: LoadOptions) -> Truncated:
    """Write the model without the layers after the first `num_layers`.

    Raises:
        LoadError: there are no such layers, the model cannot be loaded, or the output is there
            already or cannot be written.
    """
    if output.exists():
        raise LoadError(f"{output} exists; give a folder that does not")
    config = _flat_config(model, options)
    if not 1 <= num_layers < config.num_hidden_layers:
        highest = config.num_hidden_layers - 1
        raise LoadError(f"--layers must be in [1, {highest}] for {model} (got {num_layers})")
    _cut(config, num_layers)
    loaded = _load(model, config, options)
    try:
        weight_bytes = write_checkpoint(loaded, model, output, options)
    except OSError as error:
        raise LoadError(f"cannot write {output}: {error.strerror or error}") from error
    return Truncated(loaded.num_parameters(), weight_bytes)


def _flat_config(model: str, options: LoadOptions) -> Any:
    config = load_config(resolve(model), options)
    if getattr(config, "quantization_config", None):
        raise LoadError(f"{model} is quantized; give the checkpoint that it was made of")
    if config.get_text_config() is not config or not hasattr(config, "num_hidden_layers"):
        raise LoadError(f"{model} has its layers in parts of its own, which are not told apart")
    return config


def _cut(config: Any, num_layers: int) -> None:
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    for key in _EXIT_KEYS:
        if hasattr(config, key):
            delattr(config, key)


def _load(model: str, config: Any, options: LoadOptions) -> Any:
    """Transformers passes over the tensors of layers that the config does not have."""
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            resolve(model),
            config=config,
            dtype="auto",
            use_safetensors=None if options.allow_pickle else True,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:
        raise LoadError(f"cannot load {model}: {' '.join(str(error).split())[:300]}") from error
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise LoadError(f"cannot load {model}: the weights lack {absent[0]}")
    return loaded
