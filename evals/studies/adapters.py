"""What adapters cost: the same burst of eight on the base, on a few adapters, on many.

`python -m evals.studies.adapters --model FOLDER`: one real server, random adapters (speed does not
depend on what they say), bursts of eight requests interleaved, over HTTP. Rank 8 on all
linear layers, and on queries and values only.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from safetensors.torch import save_file

from evals.entry import finish
from evals.lab import Burst, completion_body, require_model, running_server, save, send_burst
from evals.studies.ratios import paired_ratio
from greenllm.model.files import local_folder, read_json
from greenllm.model.options import resolve
from greenllm.model.spec import spec_of

console = Console(stderr=True)
ROWS = 8
RANK = 8
MANY = 100
PROMPT_TOKENS = 32
NARROW = ("q_proj", "v_proj")


def write_adapter(folder: Path, targets: dict[str, tuple[int, int]], seed: int) -> None:
    """A random adapter in PEFT's layout."""
    source = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for path, (width, height) in targets.items():
        prefix = f"base_model.model.{path}"
        down = torch.randn(RANK, width, generator=source) * 0.02
        up = torch.randn(height, RANK, generator=source) * 0.02
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted({path.rpartition(".")[2] for path in targets}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_all(model: str, data_dir: Path, *, narrow: bool) -> None:
    """A hundred adapters where the server looks for them."""
    spec = spec_of(read_json(local_folder(resolve(model)), "config.json"))
    targets = {
        path: shape
        for path, shape in spec.lora_targets.items()
        if not narrow or path.endswith(NARROW)
    }
    for number in range(MANY):
        write_adapter(data_dir / "adapters" / f"a{number}", targets, number)


def mixes(model: str) -> dict[str, itertools.cycle[list[str]]]:
    """Names of the eight requests of each burst, one burst after the other."""
    source = random.Random(1)
    names = [f"a{number}" for number in range(MANY)]
    four = [names[i % 4] for i in range(ROWS)]
    some = [sorted(source.sample(names, 4)) * 2 for _ in range(25)]
    eight = [source.sample(names, ROWS) for _ in range(25)]
    return {
        "base": itertools.cycle([[model] * ROWS]),
        "1 adapter": itertools.cycle([["a0"] * ROWS]),
        "4 adapters": itertools.cycle([four]),
        "4 adapters and base": itertools.cycle([[*names[:4], *[model] * 4]]),
        "any 4 of 100": itertools.cycle(some),
        "any 8 of 100": itertools.cycle(eight),
    }


def measure(model: str, *, narrow: bool, rounds: int, tokens: int, quantize: str) -> dict[str, Any]:
    """All mixes on one server."""
    served = "bundled" if model == "bundled" else Path(model).resolve().name
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_all(model, folder, narrow=narrow)
        options = ("--quantize", quantize, "--no-prefix-cache", "--adapter-cache-mb", "4000")
        with running_server(model, folder, *options) as (url, pid):
            source, arms = random.Random(7), mixes(served)
            found: dict[str, list[Burst]] = {arm: [] for arm in arms}
            for number in range(rounds + 1):
                for arm, names in arms.items():
                    bodies = [
                        completion_body(
                            who, source.choices(range(10, 400), k=PROMPT_TOKENS), tokens
                        )
                        for who in next(names)
                    ]
                    burst = send_burst(url, pid, bodies)
                    if number:  # the first compiles the graphs
                        found[arm].append(burst)
                console.print(f"round {number}/{rounds}")
    return {arm: _summary(bursts, found["base"]) for arm, bursts in found.items()}


def _summary(bursts: list[Burst], base: list[Burst]) -> dict[str, Any]:
    def speeds(of: list[Burst]) -> list[float]:
        return [burst.tokens_per_s for burst in of]

    return {
        "tokens_per_s": statistics.median(speeds(bursts)),
        "tokens_per_cpu_s": statistics.median(b.tokens_per_cpu_s for b in bursts),
        "active_joules_per_token": statistics.median(
            b.total("active_joules") / b.tokens for b in bursts
        ),
        "over_base_tokens_per_s": paired_ratio(speeds(bursts), speeds(base)),
    }


def main(
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
    rounds: Annotated[int, typer.Option(help="Bursts per mix.")] = 7,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    quantize: Annotated[str, typer.Option(help="Weights of the base.")] = "int8",
) -> None:
    """Measure throughput with adapters against the base's."""
    require_model(model)
    arms = {"all linear layers": False, "queries and values": True}
    figures = {
        name: measure(model, narrow=narrow, rounds=rounds, tokens=tokens, quantize=quantize)
        for name, narrow in arms.items()
    }
    about = {"model": Path(model).name, "rank": RANK, "rounds": rounds, "tokens": tokens}
    result = {**about, "quantize": quantize, "targets": figures}
    console.print_json(data=result)
    console.print(f"written to {save('adapters', result)}")


if __name__ == "__main__":
    finish("evals.studies.adapters", lambda: typer.run(main))
