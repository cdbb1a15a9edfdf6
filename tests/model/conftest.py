"""Small random and real models, and the engine's loop around the torch runner without a server.

Tests get the helpers as session-wide fixtures without state, so that Hypothesis may use them.
`GREENLLM_TEST_DATA` names a folder with real models; without it `../shared/data` beside the
repository is tried, and tests that need it are skipped where neither exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig

from greenllm.core import Request, SamplingParams, Sequence, sequences_of
from greenllm.engine.scheduler import Scheduler
from greenllm.model.loader import load_model
from greenllm.model.options import LoadOptions
from greenllm.runner.attention import PagedAttention
from greenllm.runner.torch import TorchRunner, load_torch_runner
from tests.model import driving

REPOSITORY = Path(__file__).resolve().parents[2]
torch.set_num_threads(1)


def _save(config: Any, folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return str(folder)


def _load(
    folder: str | Path,
    options: LoadOptions | None = None,
    *,
    block_size: int = 4,
    kv_cache_bytes: int = 2**22,
) -> TorchRunner:
    return load_torch_runner(
        str(folder),
        options or LoadOptions(),
        block_size=block_size,
        kv_cache_bytes=kv_cache_bytes,
        max_num_seqs=8,
    )


def _assemble(folder: str | Path, block_size: int = 8) -> tuple[TorchRunner, Any, PagedAttention]:
    attention = PagedAttention()
    key = f"paged_{id(attention)}"
    AttentionInterface.register(key, attention.attend)
    loaded = load_model(str(folder), LoadOptions(attention=key, device="cpu"))
    runner = TorchRunner(
        loaded, attention, block_size=block_size, kv_cache_bytes=2**25, max_num_seqs=8
    )
    return runner, loaded.model, attention


def _ask(
    runner: TorchRunner,
    prompt: SequenceOf[int],
    params: SamplingParams,
    name: str = "request",
) -> list[Sequence]:
    request = Request(name, (tuple(prompt),), params, model="")
    info = runner.info
    return sequences_of(request, eos_token_ids=info.eos_token_ids, max_len=info.context_length)


def _answers(
    runner: TorchRunner,
    prompts: SequenceOf[SequenceOf[int]],
    max_tokens: int,
    **how: Any,
) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    sequences = [_ask(runner, prompt, params)[0] for prompt in prompts]
    driving.drive(runner, sequences, **how)
    return [seq.token_ids[seq.prompt_len :] for seq in sequences]


def _generate(model: Any, prompts: SequenceOf[SequenceOf[int]], max_tokens: int) -> list[list[int]]:
    answers = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=model.device)
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def _prompts(vocab_size: int, lengths: SequenceOf[int], seed: int = 1) -> list[list[int]]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (n,), generator=source).tolist() for n in lengths]


def _real_model(name: str) -> Path:
    root = os.environ.get("GREENLLM_TEST_DATA")
    folder = (Path(root) if root else REPOSITORY.parent / "shared" / "data") / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in the data folder (set GREENLLM_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def save() -> Callable[..., str]:
    """`(config, folder, seed=0)`: a model of random weights, saved; returns the folder."""
    return _save


@pytest.fixture(scope="session")
def load() -> Callable[..., TorchRunner]:
    """`(folder, options=None, block_size=4)`: a runner over a folder."""
    return _load


@pytest.fixture(scope="session")
def assemble() -> Callable[..., tuple[TorchRunner, Any, PagedAttention]]:
    """`(folder, block_size=8)`: a runner, with its model and its attention."""
    return _assemble


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[Sequence]]:
    """`(runner, prompt, params, name="request")`: the sequences of a request."""
    return _ask


@pytest.fixture(scope="session")
def drive() -> Callable[..., Scheduler]:
    """Run sequences to their ends; returns the scheduler, for its counts.

    With `stagger` a sequence arrives every so many steps.
    """
    return driving.drive


@pytest.fixture(scope="session")
def answers() -> Callable[..., list[list[int]]]:
    """`(runner, prompts, max_tokens, **how)`: greedy answers of the engine, `how` as in `drive`."""
    return _answers


@pytest.fixture(scope="session")
def generate() -> Callable[..., list[list[int]]]:
    """`(model, prompts, max_tokens)`: greedy answers of transformers, one prompt at a time."""
    return _generate


@pytest.fixture(scope="session")
def random_prompts() -> Callable[..., list[list[int]]]:
    """`(vocab_size, lengths, seed=1)`: random ids."""
    return _prompts


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
    return _save(tiny_config, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_runner(tiny: str) -> TorchRunner:
    """A runner over it, blocks of four tokens."""
    return _load(tiny)


@pytest.fixture(scope="session")
def tiny_model(tiny: str) -> Any:
    """The same weights in plain transformers."""
    return AutoModelForCausalLM.from_pretrained(tiny, attn_implementation="sdpa").eval()
