"""What tests of several kinds share. Nothing here loads torch before a test asks for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Other programs may slow any example down; `make check` tries fewer of them than `make test`.
settings.register_profile("suite", deadline=None)
settings.register_profile("quick", settings.get_profile("suite"), max_examples=20)
settings.load_profile("suite")

# Before anything loads torch: its idle threads must not spin, on machines that tests share.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What starts the tests in the background ignores these, and so would every program they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _make_adapter(
    base: str | Path, folder: Path, *, seed: int = 3, std: float = 0.1, **options: Any
) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    plain = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    config = LoraConfig(task_type="CAUSAL_LM", **{**plain, **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    """`(base, folder, seed=3, std=0.1, **options)`: saves an adapter as PEFT does; the folder.

    Its B is not zero, as it would be before training; `options` are PEFT's.
    """
    return _make_adapter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker begins one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
