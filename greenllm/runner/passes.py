"""Self-checks of the OpenVINO runner that passed on this machine, kept in the cache folder.

Contract: a folder that cannot be written costs the check again, and what is not a record is passed
over. No torch. Not covered: checks that failed; they are repeated at every start.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_FOLDER = "selfcheck"


@dataclass(frozen=True, slots=True)
class Passed:
    """What was compared, how far it was apart, and how far it might have been.

    `shape` is what distinguishes models of a family; older records do not have it.
    """

    family: str
    formats: str
    openvino: str
    difference: float
    allowed: float
    shape: str = ""

    def __str__(self) -> str:
        """One line."""
        what = ", ".join(filter(None, (self.family, self.shape, self.formats)))
        return (
            f"{what}: {self.difference:.2g} of the logits apart"
            f" (allowed {self.allowed:.2g}), OpenVINO {self.openvino}"
        )


def has_passed(cache_dir: Path, key: str) -> bool:
    """Whether the check with this key is remembered."""
    return _place(cache_dir, key).is_file()


def remember(cache_dir: Path, key: str, passed: Passed) -> None:
    """Keep a pass."""
    place = _place(cache_dir, key)
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(asdict(passed)), encoding="utf-8")


def remembered(cache_dir: Path) -> list[Passed]:
    """Every pass there is, of any version."""
    found = []
    for path in sorted((cache_dir / _FOLDER).glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            found.append(Passed(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=str)


def _place(cache_dir: Path, key: str) -> Path:
    return cache_dir / _FOLDER / f"{key}.json"
