"""Real text beside the generated examples: public-domain books, cut into pieces.

Contract: a folder's *.txt files, in the order of their names, become blocks of a few pieces each;
a block is held out as a whole, by its hash, so held-out text never occurs in training, whatever
the piece size. Not covered: cleaning beyond white space, and duplicates between files.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evals.tasks.generated.example import is_held_out_key

PIECE_CHARACTERS: Final = 420
BLOCK_PIECES: Final = 5


@dataclass(frozen=True)
class Library:
    """Blocks of text to train on and blocks to score on; both may be empty."""

    training: tuple[tuple[str, ...], ...] = ()
    held_out: tuple[tuple[str, ...], ...] = ()

    def piece(self, rng: random.Random) -> str:
        """One short piece for training."""
        return rng.choice(rng.choice(self.training))

    def block(self, rng: random.Random) -> str:
        """One long piece for training."""
        return " ".join(rng.choice(self.training))


def pieces(text: str) -> list[str]:
    """Whole sentences, joined up to the piece size; a longer sentence stands alone."""
    found: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        if found and len(found[-1]) + len(sentence) < PIECE_CHARACTERS:
            found[-1] += " " + sentence
        else:
            found.append(sentence)
    return [piece for piece in found if piece]


def blocks(text: str) -> list[tuple[str, ...]]:
    """Consecutive pieces, a few at a time."""
    cut = pieces(text)
    return [tuple(cut[i : i + BLOCK_PIECES]) for i in range(0, len(cut), BLOCK_PIECES)]


def is_held_out_block(block: tuple[str, ...]) -> bool:
    """Whether a block is for scoring only."""
    return is_held_out_key("text:" + " ".join(block))


def read_library(folder: Path | None) -> Library:
    """The text of a folder; without a folder, none."""
    files = sorted(folder.glob("*.txt")) if folder else []
    cut = [block for path in files for block in blocks(path.read_text(encoding="utf-8"))]
    held_out = tuple(block for block in cut if is_held_out_block(block))
    return Library(tuple(block for block in cut if not is_held_out_block(block)), held_out)
