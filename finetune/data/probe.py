"""Text that training must not make worse: the user's own, or simple stories made here.

Contract: the built-in sample is the same everywhere and no part of any fine-tune. For a model that
knows other things well, `--probe` should name text of those.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.tasks.generated.stories import story
from finetune.data.encoding import Encoded, Encoder
from finetune.data.examples import MOST_BYTES, DataError, DataLine, Turn
from finetune.recipe import Recipe
from greenllm.given_files import read_text

_SIZE = 32
_LENGTH = 256


def load_probe(recipe: Recipe, tokenizer: Any, context: int) -> list[Encoded]:
    """Pieces of text, every token of which is scored.

    Raises:
        DataError: the file cannot be read or is empty.
    """
    texts = _stories() if recipe.probe is None else _paragraphs(recipe.probe)
    encoder = Encoder(tokenizer, templated=False)
    length = min(_LENGTH, context)
    examples = [DataLine(f"probe:{i}", "text", (Turn("text", text, True),))
                for i, text in enumerate(texts, 1)]  # fmt: skip
    return [encoder.encode(example).cut(length) for example in examples]


def _stories() -> list[str]:
    rng = random.Random("probe")
    return [story(rng).answer for _ in range(_SIZE)]


def _paragraphs(path: Path) -> Sequence[str]:
    try:
        text = read_text(path, MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--probe: cannot read {path}: {error}", "probe") from error
    found = [part.strip() for part in text.split("\n\n") if part.strip()][:_SIZE]
    if not found:
        raise DataError(f"--probe: {path} holds no text", "probe")
    return found
