"""The same on a GPU: tokens as in transformers for every precision, seeds, and NVML's joules.

Kernels on a GPU depend on the number of rows, so that in other precisions than fp32 a near-tie may
turn. There each token must be within `ROUNDING` of the best one's logit in a plain forward over the
same weights, which a wrong key, position or mask would miss by far.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from greenllm.core import Batch, Chunk, Request, SamplingParams, Sequence, sequences_of
from greenllm.energy.meters.nvml import NvmlMeter, load_nvml
from greenllm.engine.blocks import BlockManager
from greenllm.engine.scheduler import Scheduler
from greenllm.model.info import Quantization
from greenllm.model.options import BUNDLED, BUNDLED_PATH, LoadOptions
from greenllm.runner.sampling import SamplingPosition, sample
from greenllm.runner.torch import TorchRunner, load_torch_runner
from greenllm.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ROUNDING = 0.5
MAX_TOKENS = 40
QUESTIONS = (
    "Who are you?",
    "Tell me a short story.",
    "What is 2 + 3?",
    "Hello! How are you today?",
)
PRECISIONS: list[tuple[Quantization, torch.dtype]] = [
    ("none", torch.float32),
    ("none", torch.bfloat16),
    ("nf4", torch.bfloat16),
    ("int8", torch.float16),
]


def _prompts() -> list[list[int]]:
    tokenizer = load_tokenizer(str(BUNDLED_PATH))
    texts = [
        tokenizer.chat([{"role": "user", "content": text}], add_generation_prompt=True)
        for text in QUESTIONS
    ]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def _runner(quantization: Quantization, dtype: torch.dtype, *, eager: bool = False) -> TorchRunner:
    name: Any = str(dtype).removeprefix("torch.")
    options = LoadOptions(quantization=quantization, dtype=name, device="cuda")
    return load_torch_runner(
        BUNDLED, options, block_size=16, kv_cache_bytes=2**25, max_num_seqs=8, eager=eager
    )


def _plain(quantization: Quantization, dtype: torch.dtype) -> Any:
    config = {
        "none": None,
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    }[quantization]
    return AutoModelForCausalLM.from_pretrained(
        BUNDLED_PATH, dtype=dtype, device_map="cuda", quantization_config=config
    ).eval()


def _answers(
    runner: TorchRunner, prompts: list[list[int]], params: SamplingParams, tokens_per_step: int
) -> list[list[int]]:
    blocks = BlockManager(runner.num_blocks, runner.block_size)
    scheduler = Scheduler(
        blocks, max_num_seqs=8, max_batch_tokens=tokens_per_step, clock=time.monotonic
    )
    sequences: list[Sequence] = []
    for number, prompt in enumerate(prompts):
        request = Request(f"{number}", (tuple(prompt),), params, model="")
        sequences += sequences_of(
            request,
            eos_token_ids=runner.info.eos_token_ids,
            max_len=runner.info.context_length,
        )
    for seq in sequences:
        scheduler.add(seq)
    while scheduler.has_work:
        batch = scheduler.schedule()
        runner.copy_blocks(batch.copies)
        scheduler.commit(batch, runner.run(batch))
    return [seq.token_ids[seq.prompt_len :] for seq in sequences]


def _generate(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt], device="cuda")
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
    )
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer


def _regret(model: Any, prompt: list[int], answer: list[int]) -> float:
    """How far an answer's tokens are below the best ones, in a plain forward; at worst."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer], device="cuda")).logits[0].float()
    rows = logits[len(prompt) - 1 : -1]
    chosen = rows.gather(1, torch.tensor(answer, device="cuda")[:, None])[:, 0]
    return float((rows.max(dim=-1).values - chosen).max())


@pytest.mark.parametrize(("quantization", "dtype"), PRECISIONS)
def test_tokens_are_those_of_transformers(quantization: Quantization, dtype: torch.dtype) -> None:
    """Alone, and together with chunked prompts."""
    runner = _runner(quantization, dtype)
    model = _plain(quantization, dtype)
    prompts = _prompts()
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    alone = [_answers(runner, [prompt], params, 512)[0] for prompt in prompts]
    together = _answers(runner, prompts, params, 8)
    if dtype == torch.float32:
        assert alone == [_generate(model, prompt) for prompt in prompts]
        assert together == alone
    for prompt, first, second in zip(prompts, alone, together, strict=True):
        assert _regret(model, prompt, first) <= ROUNDING
        assert _regret(model, prompt, second) <= ROUNDING
        wrong = [*first[:3], (first[3] + 1) % runner.info.vocab_size, *first[4:]]
        assert _regret(model, prompt, wrong) > ROUNDING
    assert runner.info.device == "cuda:0"
    assert runner.info.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_replayed_steps_say_what_launched_ones_say(
    quantization: Quantization, caplog: pytest.LogCaptureFixture
) -> None:
    """And steps really are replayed: the graphs are there, and nothing was warned of."""
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    replayed = _runner(quantization, torch.float32)
    launched = _runner(quantization, torch.float32, eager=True)
    found = _answers(replayed, _prompts(), params, 512)
    assert found == _answers(launched, _prompts(), params, 512)
    assert launched._recorded is None
    assert replayed._recorded is not None
    assert replayed._recorded._works
    assert len(replayed._recorded._recordings) >= 2
    assert not caplog.records


@pytest.mark.parametrize("layer", [3, 4])
def test_an_exit_guesses_the_same_when_it_is_replayed(layer: int) -> None:
    prompts = _prompts()
    guesses = []
    for eager in (False, True):
        runner = _runner("none", torch.float32, eager=eager)
        drafter = runner.early_exit(layer)
        seqs = [
            sequences_of(
                Request(f"{i}", (tuple(prompt),), SamplingParams(temperature=0), model=""),
                eos_token_ids=frozenset(),
                max_len=200,
            )[0]
            for i, prompt in enumerate(prompts)
        ]
        for i, seq in enumerate(seqs):
            seq.block_table = list(range(8 * i, 8 * i + 8))
            runner.run(Batch((Chunk(seq, 0, seq.prompt_len - 1, samples=False),)))
        chunks = [Chunk(seq, seq.prompt_len - 1, 1, samples=True, room=6) for seq in seqs]
        guesses.append(drafter.draft(chunks))
    assert guesses[0] == guesses[1]
    assert all(len(ids) == 6 for ids in guesses[0])


def test_the_default_is_bfloat16_on_the_gpu() -> None:
    runner = load_torch_runner(BUNDLED, LoadOptions())
    assert (runner.info.device, runner.info.dtype) == ("cuda:0", "bfloat16")


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_weights_shrink(quantization: Quantization) -> None:
    plain = _runner("none", torch.bfloat16).info
    quantized = _runner(quantization, torch.bfloat16).info
    assert quantized.weight_bytes < 0.75 * plain.weight_bytes
    assert quantized.parameters == plain.parameters


def test_a_seed_gives_the_same_tokens_in_any_batch() -> None:
    runner = _runner("none", torch.float32)
    prompts = _prompts()
    params = SamplingParams(temperature=1.2, top_p=0.95, seed=5, max_tokens=MAX_TOKENS)
    alone = [_answers(runner, [prompt], params, 512)[0] for prompt in prompts]
    assert _answers(runner, prompts, params, 512) == alone


def test_draws_are_those_of_the_processor() -> None:
    """Same seeds, same logits: the device does not choose the token."""
    params = SamplingParams(
        temperature=0.9, top_k=50, top_p=0.9, repetition_penalty=1.2, logit_bias={3: 2.0}
    )
    request = Request("request", ((1, 2, 3),), params, model="")
    sequences = [
        Sequence(request, 0, [1, 2, 3], 3, seed, frozenset(), max_len=9) for seed in range(300)
    ]
    rows = [SamplingPosition(seq) for seq in sequences]
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1000, generator=source).mul(3).expand(len(rows), -1)
    assert sample(logits.cuda(), rows) == sample(logits, rows)


def test_nvml_reads_joules() -> None:
    """Monotone, more under load, and a plausible power for the boards of one machine."""
    meter = NvmlMeter(load_nvml())
    assert meter.method in ("measured:nvml-energy", "measured:nvml-power")
    first = meter.read()
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    while time.monotonic() - first.at_s < 1.5:
        matrix = torch.nn.functional.normalize(matrix @ matrix)
        torch.cuda.synchronize()
    second = meter.read()
    power_w = (second.joules["gpu"] - first.joules["gpu"]) / (second.at_s - first.at_s)
    assert 20 < power_w < 1500 * torch.cuda.device_count() + 500
    assert meter.read().joules["gpu"] >= second.joules["gpu"]
