"""Ask two LoRA adapters and the base model in one batch.

You learn how adapters are loaded and named, and that each answer has a receipt of its own. The
adapters here are random numbers: their answers differ from the base's, and make no sense.
"""

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import greenllm.model
from greenllm import LLM, SamplingParams

BASE = Path(greenllm.model.__file__).parent / "bundled"


def save_adapter(folder: Path, seed: int) -> Path:
    """An adapter as PEFT saves it after training."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.5)
    model.save_pretrained(folder)
    return folder


with tempfile.TemporaryDirectory() as folder, LLM("bundled", adapter_dirs=[folder]) as llm:
    for seed, name in enumerate(("north", "south")):
        llm.load_adapter(name, save_adapter(Path(folder, name), seed))
    names = [None, "north", "south"]
    sampling = SamplingParams(temperature=0, max_tokens=16)
    for answer in llm.generate(["Once upon a time"] * 3, sampling, adapter=names):
        print(
            f"{answer.receipt.adapter or 'base'}: {answer.receipt.total_j:.4f} J, {answer.text!r}"
        )
