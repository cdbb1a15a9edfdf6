"""What tests ask the Dockerfile: its instructions, its variables, and what it copies.

Not covered: what RUN does; `docker build` says more.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _steps() -> list[tuple[str, str]]:
    """Instructions with the rest of their lines."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    found = (line.partition(" ") for line in text.replace("\\\n", " ").splitlines() if line)
    return [(word, re.sub(r"--[a-z-]+=\S+\s+", "", rest).strip()) for word, _, rest in found]


STEPS = _steps()


def last(word: str) -> str:
    """The instruction of a kind that counts, without its flags."""
    return [rest for name, rest in STEPS if name == word][-1]


def words(word: str) -> list[str]:
    """The same in words, of a JSON array or of a plain line."""
    text = last(word).removeprefix("CMD ")
    return json.loads(text) if text.startswith("[") else shlex.split(text)


def environment() -> dict[str, str]:
    """The variables of the image."""
    return dict(pair.split("=", 1) for pair in words("ENV"))


def copied() -> set[str]:
    """What comes from the repository."""
    copies = [rest.split()[:-1] for name, rest in STEPS if name == "COPY"]
    return {source for sources in copies for source in sources if not source.startswith("/")}
