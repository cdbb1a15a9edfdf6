"""TRL's trainer alone, for `evals.studies.finetuning --throughput`: prints tokens/s as JSON.

What a user of TRL would write for the same fine-tune: the same data, adapter, batches by length,
arithmetic and optimizer, and none of greenllm's parts in the loop.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from finetune.data.household import household_rows
from greenllm.model.options import BUNDLED_PATH


def rows(data: str) -> list[dict[str, Any]]:
    """Conversations as TRL wants them."""
    if data == "example":
        found = household_rows()
    else:
        found = [json.loads(line) for line in Path(data).read_text().splitlines() if line.strip()]
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in found
    ]


def main(data: str, steps: int, batch_size: int, seed: int) -> None:
    """Train and print."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_PATH)
    found = rows(data)
    is_half = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                BUNDLED_PATH, dtype=torch.bfloat16 if is_half else torch.float32
            ),
            args=SFTConfig(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=batch_size,
                learning_rate=2e-3, lr_scheduler_type="cosine", warmup_steps=round(0.03 * steps),
                bf16=is_half, use_cpu=True,
                gradient_checkpointing=False, train_sampling_strategy="group_by_length",
                save_strategy="steps", save_steps=max(1, steps // 10), save_total_limit=2,
                logging_steps=1, seed=seed, report_to=[], disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(found[: round(0.9 * len(found))]),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"
            ),
        )  # fmt: skip
        seconds = trainer.train().metrics["train_runtime"]
    tokens = trainer.state.log_history[-2]["num_tokens"]
    print(json.dumps({"tokens_per_s": tokens / seconds}))


if __name__ == "__main__":
    main(sys.argv[1], *(int(number) for number in sys.argv[2:5]))
