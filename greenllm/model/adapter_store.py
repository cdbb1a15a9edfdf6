"""The adapters in a data folder: `<data_dir>/adapters/<name>/`, one folder each.

Contract: an adapter is there as a whole or not at all, and what is there was checked when it came.
Works beside a running server, which finds what comes and goes. Not covered: what a server still
holds in memory of an adapter that went.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from greenllm.model.adapter_folders import FILES, check_name
from greenllm.model.lora_config import AdapterError
from greenllm.model.lora_layout import LoraFacts, inspect_lora

if TYPE_CHECKING:
    from greenllm.model.lora import LoraWeights


@dataclass(frozen=True, slots=True)
class Stored:
    """An adapter in the store: what it is, or why it cannot be used."""

    name: str
    folder: Path
    facts: LoraFacts | None
    problem: str = ""


def list_stored(home: Path) -> list[Stored]:
    """Every adapter there, by name, the broken ones too."""
    folders = sorted(path for path in home.iterdir() if path.is_dir()) if home.is_dir() else []
    return [_look_at(folder) for folder in folders]


def _look_at(folder: Path) -> Stored:
    try:
        check_name(folder.name)
        return Stored(folder.name, folder, inspect_lora(folder))
    except AdapterError as error:
        return Stored(folder.name, folder, None, str(error))


def store(
    home: Path,
    name: str,
    folder: Path,
    targets: Mapping[str, tuple[int, int]] | None = None,
    *,
    reserved: Collection[str] = (),
) -> LoraWeights:
    """Check and copy an adapter; without `targets` any base will do.

    Raises:
        AdapterError: the name is taken or `reserved`, or the adapter could not be served.
    """
    from greenllm.model.lora import read_lora  # which loads torch

    check_name(name, reserved)
    place = home / name
    if place.exists():
        raise AdapterError(f"{place} exists; `greenllm adapters remove {name}` removes it")
    # Complaints should name the folder that was given, so it is read before it is copied.
    read_lora(folder, targets)
    fresh = home.parent / f".adapter-{secrets.token_hex(6)}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        for file in FILES:
            shutil.copyfile(folder / file, fresh / file)
        weights = read_lora(fresh, targets)
        os.rename(fresh, place)
    except OSError as error:
        raise AdapterError(f"cannot copy {folder} to {place}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return weights


def discard(home: Path, name: str) -> None:
    """Delete an adapter from the store.

    Raises:
        AdapterError: there is none, or it cannot be deleted.
    """
    check_name(name)
    place = home / name
    if not place.is_dir():
        raise AdapterError(f"there is no adapter {name!r} in {home}")
    gone = home.parent / f".adapter-{secrets.token_hex(6)}"
    try:
        os.rename(place, gone)
        gone.unlink() if gone.is_symlink() else shutil.rmtree(gone)
    except OSError as error:
        raise AdapterError(f"cannot delete {place}: {error.strerror or error}") from error
