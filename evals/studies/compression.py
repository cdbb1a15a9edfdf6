"""Zeros and factors in place of matrices: `python -m evals.studies.compression`.

Question: does it save joules to set the smallest weights of every matrix to zero, or to put two
factors of a low rank in its place? The kernels that serve here multiply zeros like other numbers,
and two factors are two products instead of one. Arms: the model as it is, with zeros, with factors.
Measure: joules, idle share included, and seconds per token of the same greedy decoding by
transformers, in turns, medians over rounds; and the loss on held-out examples.

Factors are not written as a checkpoint, because no runner here computes them. A model with zeros is
with `--keep`, for `greenllm serve` and `greenllm eval`.

Source: truncated singular value decomposition, Eckart and Young (1936); zeros by magnitude, Han et
al., arXiv:1506.02626. Not covered: zeros in patterns that hardware skips (2:4), embeddings, heads;
factors that are trained further.
"""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from evals.studies import study
from evals.tables import table, value
from finetune.bill.phases import PHASES, PhaseAccount
from finetune.compressing.importance import layers_of
from finetune.compressing.making import Source, read_model, write
from finetune.train.evaluation import losses_of
from finetune.train.model import device_of
from greenllm.energy.meters.choose import open_meter
from greenllm.options import MeterOptions

_SEED = 7
_TOKENS = 48
_BATCHES = (1, 8)
Share = Annotated[float, typer.Option(min=0.01, max=0.99)]


def matrices_of(model: Any) -> dict[str, nn.Linear]:
    """The linear modules inside the layers, by name."""
    named = layers_of(model).named_modules()
    return {name: module for name, module in named if isinstance(module, nn.Linear)}


@torch.no_grad()
def zero_smallest(model: Any, share: float) -> Any:
    """Zero that share of every matrix in place."""
    for module in matrices_of(model).values():
        smallest = torch.topk(
            module.weight.abs().flatten(), int(share * module.weight.numel()), largest=False
        )
        module.weight.view(-1)[smallest.indices] = 0
    return model


@torch.no_grad()
def factorize(model: Any, share: float) -> Any:
    """Put two factors in place of every matrix, with that share of its parameters.

    A matrix whose rank would be 0 stays.
    """
    layers = layers_of(model)
    for name, module in matrices_of(model).items():
        rows, columns = module.weight.shape
        rank = min(rows, columns, int(share * rows * columns / (rows + columns)))
        if rank:
            parent, _, last = name.rpartition(".")
            setattr(layers.get_submodule(parent), last, _factors(module, rank))
    return model


def _factors(module: nn.Linear, rank: int) -> nn.Sequential:
    left, values, right = torch.linalg.svd(module.weight.float(), full_matrices=False)
    first = nn.Linear(module.in_features, rank, bias=False)
    second = nn.Linear(rank, module.out_features, bias=module.bias is not None)
    root = values[:rank].sqrt()
    first.weight.copy_(root[:, None] * right[:rank])
    second.weight.copy_(left[:, :rank] * root)
    if module.bias is not None:
        second.bias.copy_(module.bias)
    return nn.Sequential(first, second).to(module.weight.device, module.weight.dtype)


def measure(
    models: Mapping[str, Any], source: Source, rounds: int, account: PhaseAccount
) -> dict[str, Any]:
    """Each model's parameters, loss, and costs of decoding; joules are None where unknown."""
    device, pad = device_of(source.recipe), source.tokenizer.pad_token_id
    costs = study.interleave(
        lambda arm, _: _decode(models[arm[0]], source, arm[1], account),
        rounds,
        *([(name, size) for name in models] for size in _BATCHES),
        warm_up=True,  # it finds its kernels
    )
    found = {}
    for name, model in models.items():
        loss = losses_of(model, source.data.validation, device, pad).mean()
        found[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": None if loss is None else loss.as_dict(),
            "decoding": {
                str(size): _medians(costs[name, size], is_known=account.is_known)
                for size in _BATCHES
            },
        }
    return found


def _medians(costs: list[tuple[float, float]], *, is_known: bool) -> dict[str, float | None]:
    seconds, joules = (statistics.median(values) for values in zip(*costs, strict=True))
    return {"seconds_per_token": seconds, "joules_per_token": joules if is_known else None}


@torch.no_grad()
def _decode(model: Any, source: Source, size: int, account: PhaseAccount) -> tuple[float, float]:
    """Seconds and joules per token of one batch."""
    chosen = source.data.train[:size]
    width = min(len(item.ids) for item in chosen)
    ids = torch.tensor([item.ids[:width] for item in chosen], device=model.device)
    account.read()
    before, began_s = account.spent(*PHASES), time.perf_counter()
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
        min_new_tokens=_TOKENS, max_new_tokens=_TOKENS,
        pad_token_id=source.tokenizer.pad_token_id,
    )  # fmt: skip
    took_s = time.perf_counter() - began_s
    account.read()
    spent = account.spent(*PHASES).minus(before)
    tokens = _TOKENS * len(chosen)
    return took_s / tokens, spent.total_j / tokens


def page(found: study.Result) -> str:
    """A table of the arms, and which of them need fewer joules at every batch size."""
    columns = {
        "model": value("name"),
        "parameters": value("parameters", ",.0f"),
        "loss on held-out examples": value("loss.value", ".4f"),
    }
    for size in _BATCHES:
        place = f"decoding.{size}"
        columns[f"mJ per token at batch {size}"] = value(f"{place}.joules_per_token", factor=1e3)
        columns[f"ms per token at batch {size}"] = value(f"{place}.seconds_per_token", factor=1e3)
    rows = [{"name": name, **one} for name, one in found["models"].items()]
    saving = ", ".join(_saving(found["models"])) or "neither zeros nor factors"
    return (
        f"# Zeros and factors: {found['model']}\n\n{table(columns, rows)}\n\n"
        f"Fewer joules per token at every batch size: {saving}.\n"
    )


def _saving(models: Mapping[str, Any]) -> Iterator[str]:
    dense = models["dense"]["decoding"]
    for name, one in models.items():
        pairs = [
            (one["decoding"][size]["joules_per_token"], costs["joules_per_token"])
            for size, costs in dense.items()
        ]
        if all(None not in pair and pair[0] < pair[1] for pair in pairs):
            yield name


STUDY = study.Study("compression", page=page)


def main(
    model: study.Model = "bundled",
    zeros: Share = 0.5,
    rank_share: Share = 0.5,
    rounds: study.Rounds = 3,
    examples: Annotated[int, typer.Option(help="Generated examples.")] = 4000,
    threads: study.Threads = 1,
    meter: Annotated[str, typer.Option(help="As for greenllm serve.")] = "auto",
    keep: Annotated[Path | None, typer.Option(help="Folder for the model with zeros.")] = None,
) -> None:
    """Measure a model as it is, with zeros and with factors."""
    account = PhaseAccount(open_meter(MeterOptions(meter=meter))[0])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = read_model(
            model, "generated", examples, work, seed=7, device="cpu", threads=threads
        )
        dense = source.model.eval()
        models = {
            "dense": dense,
            "zeros": zero_smallest(copy.deepcopy(dense), zeros),
            "factors": factorize(copy.deepcopy(dense), rank_share),
        }
        if keep is not None:
            models["zeros"].save_pretrained(work / "zeros")
            write(work / "zeros", source, work, keep)
        found = measure(models, source, rounds, account)
    settings = {"zeros": zeros, "rank_share": rank_share, "cpus": os.cpu_count()}
    STUDY.report({"model": model, **settings, "models": found})


if __name__ == "__main__":
    STUDY.run(main)
