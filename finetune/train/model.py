"""The model that is trained: the base as its folder has it, and on it what the method trains.

Contract: bases are loaded as the server loads them (no pickles, no code); a target that the model
does not have is refused by name. Trained weights are float32, arithmetic may be bfloat16, and so is
a base then that is not trained: casting its weights in every step would cost a fifth of the joules.

Not covered: models that are not causal language models, vocabulary that grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from finetune.recipe import Recipe
from greenllm.config import ConfigError
from greenllm.model.files import check_folder, local_folder
from greenllm.model.info import LoadError
from greenllm.model.options import resolve

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class TorchDevice:
    """Where and in which arithmetic a run computes."""

    name: str
    dtype: torch.dtype

    @property
    def is_half(self) -> bool:
        """Whether arithmetic is bfloat16."""
        return self.dtype == torch.bfloat16

    def autocast(self) -> torch.autocast:
        """Compute in that arithmetic, whatever type the weights have."""
        kind = torch.device(self.name).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.is_half)


def device_of(recipe: Recipe) -> TorchDevice:
    """Resolve `auto`.

    Raises:
        ConfigError: there is no such device.
    """
    has_cuda = torch.cuda.is_available()
    device = ("cuda" if has_cuda else "cpu") if recipe.device == "auto" else recipe.device
    if device.startswith("cuda") and not has_cuda:
        raise ConfigError(f"--device {recipe.device}: torch sees no CUDA device", "device")
    fast = torch.cuda.is_bf16_supported() if device.startswith("cuda") else _cpu_has_bfloat16()
    wanted = {"auto": fast, "bfloat16": True, "float32": False}[recipe.dtype]
    return TorchDevice(device, torch.bfloat16 if wanted else torch.float32)


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16; where it has to emulate it, float32 is faster."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def load_tokenizer(recipe: Recipe) -> Any:
    """The base model's tokenizer, with something to pad with.

    Raises:
        LoadError: there is none.
    """
    source = resolve(recipe.model)
    check_folder(source, allow_pickle=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(local_folder(source))
    except Exception as error:
        raise LoadError(f"cannot load the tokenizer of {recipe.model}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(recipe: Recipe, device: TorchDevice) -> Any:
    """The base model, in 4 bits for qlora.

    Raises:
        LoadError: it cannot be loaded.
    """
    folder = local_folder(resolve(recipe.model))
    quantization = _four_bits(device) if recipe.method == "qlora" else None
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=device.dtype if recipe.is_adapter else torch.float32,
            quantization_config=quantization,
            device_map={"": device.name} if quantization is not None else None,
        )
    except Exception as error:
        raise LoadError(f"cannot load {recipe.model}: {error}") from error
    return model if quantization is not None else model.to(device.name)


def _four_bits(device: TorchDevice) -> BitsAndBytesConfig:
    """QLoRA's base: normal floats in 4 bits, their scales quantized too (arXiv:2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=device.dtype,
    )


def trainable(recipe: Recipe, base: Any) -> Any:
    """The base with an adapter, or the base itself with every weight to be trained.

    Raises:
        ConfigError: the model has no such modules.
    """
    if not recipe.is_adapter:
        return base.requires_grad_(True)
    torch.manual_seed(recipe.seed)
    try:
        model = get_peft_model(base, adapter_config(recipe))
    except ValueError as error:
        raise ConfigError(f"--targets {','.join(recipe.targets)}: {error}", "targets") from error
    _refuse_missing(recipe, model)
    return model


def adapter_config(recipe: Recipe) -> LoraConfig:
    """What PEFT makes of the recipe."""
    targets = list(recipe.targets)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.scale,
        lora_dropout=recipe.dropout,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        use_dora=recipe.method == "dora",
        use_rslora=recipe.method == "rslora",
    )


def _refuse_missing(recipe: Recipe, model: Any) -> None:
    if recipe.targets == (ALL_LINEAR,):
        return
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    for target in recipe.targets:
        if not any(name == target or name.endswith(f".{target}") for name in adapted):
            raise ConfigError(
                f"--targets {target}: {recipe.model} has no such linear module", "targets"
            )


def num_trained(model: Any) -> int:
    """Parameters that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def num_parameters(model: Any) -> int:
    """Parameters of the base; 4-bit weights count as what they stand for."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    count: int = base.num_parameters()
    adapters = (p.numel() for name, p in base.named_parameters() if "lora_" in name)
    return count - int(sum(adapters))
