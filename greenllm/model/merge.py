"""An adapter merged into its base: a full checkpoint that needs no adapter support.

Contract: PEFT does the sum, so everything it can merge is covered (DoRA, biases, saved modules);
the sum is in the base's precision. The output is there as a whole or not at all. Pickled weights
are never read. Not covered: bases that are quantized on disk, several adapters at once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from greenllm.model.checkpoint import write_checkpoint
from greenllm.model.info import LoadError
from greenllm.model.loader import load_config
from greenllm.model.lora_config import AdapterError
from greenllm.model.lora_layout import weights_file
from greenllm.model.options import LoadOptions, resolve


@dataclass(frozen=True, slots=True)
class Merged:
    """Sizes in bytes: the adapter's file, and the weights of the checkpoint that was made."""

    adapter_bytes: int
    merged_bytes: int


def merge(folder: Path, base: str, output: Path, options: LoadOptions) -> Merged:
    """Write the base with the adapter merged into it.

    Raises:
        AdapterError: the adapter does not fit, or the output exists or cannot be written.
        LoadError: the base cannot be loaded.
    """
    if output.exists():
        raise AdapterError(f"{output} exists; give a folder that does not")
    adapter_bytes = weights_file(folder).stat().st_size
    model = _load_base(base, options)
    merged = _merged(model, folder, base)
    try:
        merged_bytes = write_checkpoint(merged, base, output, options)
    except OSError as error:
        raise AdapterError(f"cannot write {output}: {error.strerror or error}") from error
    return Merged(adapter_bytes, merged_bytes)


def _load_base(base: str, options: LoadOptions) -> Any:
    source = resolve(base)
    config = load_config(source, options)
    try:
        return AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype="auto",
            use_safetensors=None if options.allow_pickle else True,
            trust_remote_code=options.trust_remote_code,
        )
    except Exception as error:
        raise LoadError(f"cannot load {base}: {' '.join(str(error).split())}") from error


def _merged(model: Any, folder: Path, base: str) -> Any:
    with warnings.catch_warnings():
        # PEFT asks transformers for this by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # Weights the file lacks would be random.
        warnings.filterwarnings("error", "Found missing adapter keys")
        # A head of its own would be lost when a checkpoint with tied weights is saved.
        warnings.filterwarnings("error", "Model has `tie_word_embeddings=True`")
        try:
            adapted = PeftModel.from_pretrained(model, folder)
            _check_all_used(adapted, folder, base)
            return adapted.merge_and_unload(safe_merge=True)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, Warning) as error:
            reason = " ".join(str(error).split())
            raise AdapterError(f"cannot merge {folder} into {base}: {reason[:500]}") from error


def _check_all_used(adapted: Any, folder: Path, base: str) -> None:
    """PEFT passes over tensors for modules the base does not have."""
    with safe_open(weights_file(folder), framework="np") as file:
        given = {key for key in file.keys() if "lora_" in key}  # noqa: SIM118
    unused = sorted(given - set(get_peft_model_state_dict(adapted, save_embedding_layers=False)))
    if unused:
        raise AdapterError(
            f"{folder} is for another base than {base}, which has no place for {len(unused)} of its"
            f" tensors, such as {unused[0]}"
        )
