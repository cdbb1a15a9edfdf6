"""What step number n of a run reads: generated conversations, with some real text among them.

Contract: a pure function of seed, tokenizer, library and step, so a resumed run reads what it
would have read. Not covered: order of the real text; pieces are drawn with replacement.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from evals.studies.bundled.packing import Batch, make_batch, pack_rows
from evals.studies.bundled.text import Library
from evals.studies.bundled.tokenizer import Encoded, Encoder
from evals.tasks.generated.tasks import long_examples, training_examples

LONG_EVERY: Final = 10
LONG_ROWS: Final = (4, 1024)
SHORT_ROWS: Final = (16, 256)
# Chances of drawing a text, chosen so that about an eighth of the tokens are real text.
LONG_TEXT_CHANCE: Final = 0.08
SHORT_TEXT_CHANCE: Final = 0.045


@dataclass(frozen=True)
class Source:
    """Everything a batch is made from."""

    encoder: Encoder
    library: Library
    seed: int
    pad: int

    def batch(self, step: int) -> Batch:
        """The batch of one step; every tenth has long rows."""
        rows, length = LONG_ROWS if is_long(step) else SHORT_ROWS
        return make_batch(pack_rows(self._stream(step), rows, length), length, self.pad)

    def _stream(self, step: int) -> Iterator[Encoded]:
        """Conversations and texts for one step, without end."""
        rng = random.Random(f"text-{self.seed}-{step}")
        long = is_long(step)
        seed = self.seed * 10_000_000 + step
        examples = long_examples(seed) if long else training_examples(seed)
        chance = LONG_TEXT_CHANCE if long else SHORT_TEXT_CHANCE
        for example in examples:
            if self.library.training and rng.random() < chance:
                text = self.library.block(rng) if long else self.library.piece(rng)
                yield self.encoder.text(text)
            yield self.encoder.conversation(example)


def is_long(step: int) -> bool:
    """Whether a step reads long rows."""
    return step % LONG_EVERY == LONG_EVERY - 1
