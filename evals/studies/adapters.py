"""What adapters cost: `python -m evals.studies.adapters --model FOLDER`.

Question: how much slower is a batch whose requests have adapters? Arms: bursts of eight requests on
the base, on one adapter, on a few, and on any of a hundred, in turns on one server; rank 8 on all
linear layers, and on queries and values only. The adapters are random, as speed does not depend on
what they say. Measure: tokens per second and per CPU second, active joules per token.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file

from evals.servers import require_model
from evals.studies import study
from evals.studies.load import completion_body, random_prompt, serve
from evals.studies.ratios import Figures, medians, over
from greenllm.model.files import local_folder, read_json
from greenllm.model.options import own_name, resolve
from greenllm.model.spec import spec_of

STUDY = study.Study("adapters")
ROWS = 8
RANK = 8
MANY = 100
PROMPT_TOKENS = 32
NARROW = ("q_proj", "v_proj")


def write_adapter(folder: Path, targets: Mapping[str, tuple[int, int]], seed: int) -> None:
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
    """All mixes on one server; the first round compiles the graphs."""
    options = ("--quantize", quantize, "--no-prefix-cache", "--adapter-cache-mb", "4000")
    source = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        write_all(model, Path(folder), narrow=narrow)
        with serve(model, *options, folder=Path(folder)) as server:
            arms = mixes(server.model)

            def ask(arm: str, number: int) -> Figures:
                prompts = ((who, random_prompt(PROMPT_TOKENS, source)) for who in next(arms[arm]))
                return server.burst([completion_body(*pair, tokens) for pair in prompts]).figures()

            found = study.interleave(ask, rounds, list(arms), warm_up=True)
    return {
        arm: {
            **medians(turns, "tokens_per_s", "tokens_per_cpu_s", "active_joules_per_token"),
            "over_base_tokens_per_s": over(turns, found["base"], "tokens_per_s"),
        }
        for arm, turns in found.items()
    }


def main(
    model: study.Model = "bundled",
    rounds: study.Rounds = 7,
    tokens: study.Tokens = 64,
    quantize: Annotated[str, typer.Option(help="Weights of the base.")] = "int8",
) -> None:
    """Measure throughput with adapters against the base's."""
    require_model(model)
    arms = {"all linear layers": False, "queries and values": True}
    figures = {
        name: measure(model, narrow=narrow, rounds=rounds, tokens=tokens, quantize=quantize)
        for name, narrow in arms.items()
    }
    about = {"model": own_name(model), "rank": RANK, "rounds": rounds, "tokens": tokens}
    STUDY.report({**about, "quantize": quantize, "targets": figures})


if __name__ == "__main__":
    STUDY.run(main)
