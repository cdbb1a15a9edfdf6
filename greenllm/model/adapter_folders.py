"""Where adapters may come from, what they may be called, and whether a folder has changed.

Contract: a path counts by where it leads, after symbolic links and `..`, and so do the files in it.
Not covered: a link that is changed between this look and the reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from greenllm.core import EVERYBODY
from greenllm.model.lora_config import CONFIG_NAME, WEIGHTS_NAME, AdapterError

FILES = (CONFIG_NAME, WEIGHTS_NAME)
OWNER_NAME = "owner.json"
Stamp = tuple[tuple[int, int, int] | None, ...]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class AdapterNameError(AdapterError):
    """An adapter may not have this name."""


def is_name(name: str) -> bool:
    """Whether an adapter could have this name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_name(name: str, reserved: Collection[str] = ()) -> None:
    """Refuse names that could be taken for a path, for `base:adapter`, or for the base.

    Raises:
        AdapterNameError: with the rule.
    """
    if not is_name(name):
        raise AdapterNameError(
            f"{name!r} is no name for an adapter: letters, digits, '.', '_' and '-', at most 128,"
            " a letter or digit first"
        )
    if name in reserved:
        raise AdapterNameError(f"{name!r} is the name of the base model; choose another")


def resolved(folder: Path, roots: Iterable[Path]) -> Path:
    """Where a folder really is.

    Raises:
        AdapterError: it, or a file an adapter has, is outside of `roots`.
    """
    allowed = [root.resolve() for root in roots]
    try:
        places = [path.resolve() for path in (folder, *(folder / name for name in FILES))]
    except (OSError, RuntimeError, ValueError) as error:
        raise AdapterError(f"{str(folder)!r} is no folder: {error}") from error
    for place in places:
        if not any(place.is_relative_to(root) for root in allowed):
            raise AdapterError(
                f"{folder} is outside of the folders adapters may come from (adapter_dirs)"
            )
    return places[0]


def owner_of(folder: Path) -> str | None:
    """Whose an adapter is: everybody's, unless a file beside it names another or nobody (None)."""
    try:
        found = json.loads((folder / OWNER_NAME).read_text(encoding="utf-8"))["owner"]
    except FileNotFoundError:
        return EVERYBODY
    except (OSError, ValueError, TypeError, KeyError):
        return None  # it is somebody's, and whose is not to be read
    return found if isinstance(found, str) else None


def keep_owner(folder: Path, owner: str | None) -> None:
    """Note whose an adapter is."""
    (folder / OWNER_NAME).write_text(json.dumps({"owner": owner}), encoding="utf-8")


def stamp_of(folder: Path) -> Stamp | None:
    """Changes when an adapter's files do; None when there is no such folder."""
    try:
        if not folder.is_dir():
            return None
    except OSError:  # a name too long for the file system
        return None
    return tuple(_file_stamp(folder / name) for name in FILES)


def _file_stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
