"""A model's folder: its JSON files and its safetensors weights, read one tensor at a time.

Contract: nothing here runs code from the folder or unpickles. A hub id is downloaded first (JSON
and safetensors only). Every failure is a `LoadError` of one sentence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from greenllm.model.info import LoadError

_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_INDEX = "model.safetensors.index.json"
_HASH_CHUNK = 1 << 22


def check_folder(source: str, *, allow_pickle: bool) -> None:
    """Refuse what cannot be a model, before anything is loaded.

    Raises:
        LoadError: no such folder, no config.json, or weights that would have to be unpickled.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise LoadError(f"{source} has no config.json: not a model folder")
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if looks_local and not path.is_dir():
        raise LoadError(
            f"no folder {source}; give a model folder, a hub id owner/name or 'bundled'"
        )
    pickled = any(path.glob("*.bin")) and not any(path.glob("*.safetensors"))
    if pickled and not allow_pickle:
        raise LoadError(f"{source} has pickled weights, which can run code: see --allow-pickle")


def local_folder(source: str) -> Path:
    """The folder of a model; a hub id is downloaded.

    Raises:
        LoadError: there is no such folder, or the hub cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=_PATTERNS))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise LoadError(f"cannot load {source}: {reason}") from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object from the folder; empty when the file is absent.

    Raises:
        LoadError: the file is there, but holds no JSON object.
    """
    path = folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot load {folder}: {name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"cannot load {folder}: {name} holds no JSON object")
    return value


def eos_ids(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """Ids that end an answer: the generation config's, else the model config's."""
    for holder in (read_json(folder, "generation_config.json"), config):
        ids = holder.get("eos_token_id")
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def licence_of(folder: Path) -> str | None:
    """The `license` field of a model card's front matter, where there is one."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]
    return next((ln.partition(":")[2].strip() for ln in lines if ln.startswith("license:")), None)


class Weights:
    """The tensors of a safetensors checkpoint, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = read_json(folder, _INDEX).get("weight_map", {})
        files = sorted(set(index.values())) or ["model.safetensors"]
        self.files = [folder / name for name in files]
        self._file_of: dict[str, Any] = {}
        for path in self.files:
            try:
                handle = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise LoadError(f"cannot load {folder}: {path.name}: {error}") from error
            self._file_of |= dict.fromkeys(handle.keys(), handle)  # type: ignore[no-untyped-call]

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in float32.

        Raises:
            LoadError: the checkpoint lacks it.
        """
        handle = self._file_of.get(name)
        if handle is None:
            raise LoadError(f"cannot load {self._folder}: the weights lack {name}")
        tensor: Tensor = handle.get_tensor(name)
        return tensor.to(torch.float32)

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        """A float32 matrix of the shape that config.json promises.

        Raises:
            LoadError: it is absent or has another shape.
        """
        tensor = self[name]
        if tuple(tensor.shape) != (rows, columns):
            raise LoadError(
                f"cannot load {self._folder}: {name} is {tuple(tensor.shape)},"
                f" config.json says {(rows, columns)}"
            )
        return tensor

    def digest(self) -> str:
        """SHA-256 over the weight files, what the disk cache knows them by."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while chunk := file.read(_HASH_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()
