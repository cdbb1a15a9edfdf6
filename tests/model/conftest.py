"""Small random and real models.

`GREENLLM_TEST_DATA` names a folder with real models; without it `../shared/data` beside the
repository is tried, and tests that need it are skipped where neither exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from greenllm.runner.torch import TorchRunner
from tests.model import driving

REPOSITORY = Path(__file__).resolve().parents[2]
torch.set_num_threads(1)


def _real_model(name: str) -> Path:
    root = os.environ.get("GREENLLM_TEST_DATA")
    folder = (Path(root) if root else REPOSITORY.parent / "shared" / "data") / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in the data folder (set GREENLLM_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """A folder of the data folder, or a skip."""
    return _real_model


@pytest.fixture(scope="session")
def tiny_config() -> Any:
    """A Llama whose greedy answers are varied and far from ties."""
    return LlamaConfig(**driving.LLAMA)


@pytest.fixture(scope="session")
def tiny(tiny_config: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of that Llama."""
    return driving.save(tiny_config, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_runner(tiny: str) -> TorchRunner:
    """A runner over it, blocks of four tokens."""
    return driving.load(tiny)


@pytest.fixture(scope="session")
def tiny_model(tiny: str) -> Any:
    """The same weights in plain transformers."""
    return AutoModelForCausalLM.from_pretrained(tiny, attn_implementation="sdpa").eval()
