"""Which tensors an adapter's file holds, and which module of the base each pair belongs to.

Contract: every tensor is accounted for: it is one half of a pair whose shapes fit the config and,
where the base is known, the base; anything else is a refusal. Only the file's header is read here.

Not covered: values (see `greenllm.model.lora`), embeddings and heads as targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from greenllm.model.lora_config import (
    MERGE_HINT,
    WEIGHTS_NAME,
    AdapterError,
    LoraConfig,
    read_config,
)
from greenllm.model.tensor_files import check_header

Shape = tuple[int, ...]
Targets = Mapping[str, tuple[int, int]]
_PREFIX = "base_model.model."
_HALVES = {".lora_A.weight": "A", ".lora_B.weight": "B"}
_LONGEST_NAME = 512
_ENDS_OF_MODEL = frozenset({"lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe"})


@dataclass(frozen=True, slots=True)
class Pair:
    """The two tensors of one module, by their names in the file."""

    a: str
    b: str
    rank: int
    in_features: int
    out_features: int

    @property
    def num_parameters(self) -> int:
        """Numbers in both."""
        return self.rank * (self.in_features + self.out_features)


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """What an adapter is, as far as its config and its file's header tell."""

    rank: int
    num_parameters: int
    targets: tuple[str, ...]
    base: str

    @property
    def num_bytes(self) -> int:
        """Bytes of its float32 weights in memory."""
        return 4 * self.num_parameters


def inspect_lora(folder: Path, targets: Targets | None = None) -> LoraFacts:
    """Check everything but the values; without `targets` any base will do.

    Raises:
        AdapterError: it could not be served.
    """
    config = read_config(folder)
    pairs = pair_up(_read_shapes(weights_file(folder)), config, folder, targets)
    return LoraFacts(
        rank=max(pair.rank for pair in pairs.values()),
        num_parameters=sum(pair.num_parameters for pair in pairs.values()),
        targets=tuple(sorted({path.rpartition(".")[2] for path in pairs})),
        base=config.base,
    )


def weights_file(folder: Path) -> Path:
    """The weights of an adapter.

    Raises:
        AdapterError: there are none, or only pickled ones.
    """
    path = folder / WEIGHTS_NAME
    if path.is_file():
        return path
    if any(folder.glob("*.bin")):
        raise AdapterError(
            f"{folder} has pickled weights, which can run code; save the adapter again with"
            " safe_serialization=True"
        )
    raise AdapterError(f"{folder} has no {WEIGHTS_NAME}: save the adapter with save_pretrained")


def _read_shapes(path: Path) -> dict[str, Shape]:
    try:
        check_header(path)
        with safe_open(path, framework="np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"cannot read {path}: {error}") from error


def pair_up(
    shapes: Mapping[str, Shape], config: LoraConfig, folder: Path, targets: Targets | None
) -> dict[str, Pair]:
    """Pairs by module path.

    Raises:
        AdapterError: a tensor without its other half, of a wrong shape, or for no module there is.
    """
    halves: dict[str, dict[str, str]] = {}
    for key in shapes:
        path, half = _place(key, folder)
        halves.setdefault(path, {})[half] = key
    if not halves:
        raise AdapterError(f"{folder} is empty: its {WEIGHTS_NAME} holds no tensors")
    pairs: dict[str, Pair] = {}
    for path, keys in halves.items():
        _check_module(path, config, folder, targets)
        pairs[path] = _pair(path, keys, shapes, config, folder)
        if targets is not None:
            _check_fit(path, pairs[path], targets[path], folder)
    return pairs


def _place(key: str, folder: Path) -> tuple[str, str]:
    """Module path and half of a tensor."""
    if len(key) > _LONGEST_NAME:
        raise AdapterError(f"{folder}: {key[:80]}... is no tensor's name: {len(key)} characters")
    if "lora_embedding" in key:
        raise AdapterError(f"{folder}: {key} adapts an embedding; {MERGE_HINT}")
    for ending, half in _HALVES.items():
        if key.startswith(_PREFIX) and key.endswith(ending):
            return key[len(_PREFIX) : -len(ending)], half
    raise AdapterError(f"{folder}: {key} is no part of a plain LoRA adapter; {MERGE_HINT}")


def _check_module(path: str, config: LoraConfig, folder: Path, targets: Targets | None) -> None:
    if path.rpartition(".")[2] in _ENDS_OF_MODEL:
        raise AdapterError(
            f"{folder}: {path} is the model's embedding or head, which cannot be adapted per"
            f" request; {MERGE_HINT}"
        )
    if targets is not None and path not in targets:
        made_for = f" (it was made for {config.base})" if config.base else ""
        some = ", ".join(list(targets)[:2]) or "no module that can be adapted"
        raise AdapterError(
            f"{folder} is for another base{made_for}: it adapts {path}, the served model has"
            f" {len(targets)} such modules, as {some}"
        )


def _pair(
    path: str,
    keys: Mapping[str, str],
    shapes: Mapping[str, Shape],
    config: LoraConfig,
    folder: Path,
) -> Pair:
    for half in "AB":
        if half not in keys:
            raise AdapterError(f"{folder}: {path} has no lora_{half}: the file is incomplete")
    a, b = shapes[keys["A"]], shapes[keys["B"]]
    rank = config.rank_of(path)
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
        raise AdapterError(
            f"{folder}: {path} has A {list(a)} and B {list(b)}, but its config says rank {rank}"
        )
    return Pair(keys["A"], keys["B"], rank, a[1], b[0])


def _check_fit(path: str, pair: Pair, sizes: tuple[int, int], folder: Path) -> None:
    if (pair.in_features, pair.out_features) != sizes:
        raise AdapterError(
            f"{folder} is for another base: {path} maps {pair.in_features} features to"
            f" {pair.out_features} in the adapter, {sizes[0]} to {sizes[1]} in the served model"
        )
