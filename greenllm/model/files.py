"""A model's folder: its JSON files and its safetensors weights, read one tensor at a time.

Contract: nothing here runs code from the folder or unpickles. A hub id is downloaded first: JSON,
tokenizer files, the model card (for the licence) and the one safetensors checkpoint that
transformers would take. Second copies of the weights (`consolidated.safetensors`, `original/`,
other precisions) stay where they are. Every failure is a `LoadError` of one sentence.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from greenllm.given_files import MOST_JSON_BYTES, read_start, read_text
from greenllm.model.hub import NOT_GGUF, require_on_hub
from greenllm.model.info import LoadError
from greenllm.model.tensor_files import check_header

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PATTERNS = ["*.json", "*.model", "*.txt", "*.jinja", "README.md", _WEIGHTS]
_SUBFOLDERS = ["*/*"]
_SETTINGS = (".json", ".jinja", ".txt", ".model")
_CARD_BYTES = 1 << 16
_HASH_CHUNK = 1 << 22


def check_folder(source: str, *, allow_pickle: bool) -> None:
    """Refuse what cannot be a model, before anything is loaded.

    Raises:
        LoadError: no such folder or hub id, the hub cannot be reached, no config.json, or weights
            that are GGUF's or would have to be unpickled.
    """
    path = Path(source)
    if is_gguf(path):
        raise LoadError(f"{source}: {NOT_GGUF}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise LoadError(f"{source} has no config.json: not a model folder")
    if path.is_dir():
        _check_files(path)
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1
    if looks_local and not path.is_dir():
        raise LoadError(
            f"no folder {source}; give a model folder, a hub id owner/name or 'bundled'"
        )
    pickled = any(path.glob("*.bin")) and not any(path.glob("*.safetensors"))
    if pickled and not allow_pickle:
        raise LoadError(f"{source} has pickled weights, which can run code: see --allow-pickle")
    if not path.is_dir():
        require_on_hub(source)


def _check_files(folder: Path) -> None:
    """Refuse files that would be waited for, or read for ever, whoever reads them."""
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise LoadError(f"cannot load {folder}: {path.name} is no regular file")
        if path.suffix in _SETTINGS and path.stat().st_size > MOST_JSON_BYTES:
            raise LoadError(
                f"cannot load {folder}: {path.name} is larger than {MOST_JSON_BYTES} bytes"
            )


def is_gguf(path: Path) -> bool:
    """Whether it is a GGUF file, or a folder that has weights in no other form."""
    if not path.is_dir():
        return path.suffix.lower() == ".gguf"
    others = (*path.glob("*.safetensors"), *path.glob("*.bin"))
    return any(path.glob("*.gguf")) and not others


def local_folder(source: str) -> Path:
    """The folder of a model; a hub id is downloaded.

    Raises:
        LoadError: there is no such folder, or the hub cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        return path
    folder = _download(source, _PATTERNS)
    if not (folder / _WEIGHTS).is_file():
        shards = sorted(_shards(folder))
        folder = _download(source, shards) if shards else folder
    return folder


def _download(source: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(source, allow_patterns=patterns, ignore_patterns=_SUBFOLDERS)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise LoadError(f"cannot load {source}: {reason}") from error
    return Path(folder)


def weight_files(folder: Path) -> list[Path]:
    """The files of the checkpoint: `model.safetensors`, else the shards that the index names.

    That is transformers' order too, so the runners read the same numbers. Where both are there,
    a warning says what is ignored.

    Raises:
        LoadError: the index is no index.
    """
    single = folder / _WEIGHTS
    if not single.is_file():
        return [folder / name for name in sorted(_shards(folder))] or [single]
    if (folder / _INDEX).is_file():
        log.warning("%s has %s and %s: the index is ignored", folder, _WEIGHTS, _INDEX)
    return [single]


def _shards(folder: Path) -> set[str]:
    names = read_json(folder, _INDEX).get("weight_map", {})
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise LoadError(f"cannot load {folder}: {_INDEX} names no files")
    found = set(names.values())
    if any(Path(name).name != name for name in found):
        raise LoadError(f"cannot load {folder}: {_INDEX} names files in other folders")
    return found


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object from the folder; empty when the file is absent.

    Raises:
        LoadError: the file is there, but holds no JSON object.
    """
    path = folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path, MOST_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"cannot load {folder}: {name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"cannot load {folder}: {name} holds no JSON object")
    return value


def eos_ids(*holders: Mapping[str, Any]) -> frozenset[int]:
    """Ids that end an answer, from the first that names any: generation config, model config.

    Raises:
        LoadError: they are no ids.
    """
    named: Iterator[Any] = (holder.get("eos_token_id") for holder in holders)
    found: Any = next((ids for ids in named if ids is not None), [])
    ids = found if isinstance(found, list | tuple) else [found]
    if not all(isinstance(one, int) for one in ids):
        raise LoadError(f"eos_token_id {found!r} is no token id")
    return frozenset(ids)


def licence_of(folder: Path) -> str | None:
    """The `license` field of a model card's front matter, where there is one."""
    try:
        start = read_start(folder / "README.md", _CARD_BYTES)
    except OSError:
        return None
    lines = start.decode("utf-8", errors="replace").splitlines()[:40]
    return next((ln.partition(":")[2].strip() for ln in lines if ln.startswith("license:")), None)


class Weights:
    """The tensors of a safetensors checkpoint, by name.

    Files are opened anew for each tensor, so that what was read does not stay mapped.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files = weight_files(folder)
        self._file_of: dict[str, Path] = {}
        for path in self.files:
            self._check(path)
            with self._opened(path) as handle:
                self._file_of |= dict.fromkeys(handle.keys(), path)

    def _check(self, path: Path) -> None:
        try:
            check_header(path)
        except OSError as error:
            reason = error.strerror or error
            raise LoadError(f"cannot load {self._folder}: {path.name}: {reason}") from error

    def _opened(self, path: Path) -> Any:
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise LoadError(f"cannot load {self._folder}: {path.name}: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    @property
    def names(self) -> frozenset[str]:
        """All tensors of the checkpoint."""
        return frozenset(self._file_of)

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor as it is stored, of the shape that config.json promises.

        It is a view of the file: memory is taken only while it is read.

        Raises:
            LoadError: it is absent or has another shape.
        """
        path = self._file_of.get(name)
        if path is None:
            raise LoadError(f"cannot load {self._folder}: the weights lack {name}")
        with self._opened(path) as handle:
            tensor: Tensor = handle.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise LoadError(
                f"cannot load {self._folder}: {name} is {tuple(tensor.shape)},"
                f" config.json says {shape}"
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
