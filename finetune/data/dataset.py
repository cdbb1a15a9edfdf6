"""What a run trains and is scored on: read, encoded, without doubles, none too long, counted.

Contract: the same recipe gives the same examples in the same order on every machine. Examples that
are left out are counted with their tokens; of doubles the first stays, also across the split, so
that nothing is scored that was trained on.

Not covered: streaming; data larger than memory.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data import household
from finetune.data.encoding import Encoded, Encoder
from finetune.data.examples import DataError, DataLine, examples_of, read_examples
from finetune.recipe import Recipe

FEWEST = 2
NEEDED = f"--data is needed: a JSONL file, {household.NAME!r}, or a hub dataset's id"


@dataclass(frozen=True, slots=True)
class DataCounts:
    """What became of the examples."""

    read: int = 0
    doubles: int = 0
    doubles_tokens: int = 0
    dropped: int = 0
    dropped_tokens: int = 0
    truncated: int = 0
    truncated_tokens: int = 0
    without_answer: int = 0
    train: int = 0
    train_tokens: int = 0
    learnt_tokens: int = 0
    validation: int = 0
    validation_tokens: int = 0

    def line(self) -> str:
        """All of it for people."""
        parts = (
            f"{self.doubles} doubles ({self.doubles_tokens:,} tokens)" if self.doubles else "",
            f"{self.dropped} too long" if self.dropped else "",
            f"{self.truncated} cut" if self.truncated else "",
        )
        left_out = ", ".join(filter(None, parts))
        return (
            f"{self.train} examples ({self.train_tokens:,} tokens, {self.learnt_tokens:,} of them"
            f" learnt), {self.validation} to score on"
            + (f"; left out: {left_out}" if left_out else "")
        )


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Encoded examples; `digest` is that of everything read."""

    train: tuple[Encoded, ...]
    validation: tuple[Encoded, ...]
    counts: DataCounts
    digest: str


def load_data(recipe: Recipe, tokenizer: Any, context: int) -> TrainingData:
    """Read and prepare what the recipe names.

    Raises:
        DataError: there is too little, or something that cannot be used.
    """
    with _about("data"):
        examples = _read(recipe.data)
        _refuse_other_objective(recipe, examples[0])
    held_out = None
    if recipe.validation is not None:
        with _about("validation"):
            held_out = read_examples(recipe.validation)
            _refuse_other_objective(recipe, held_out[0])
    encoder = Encoder(tokenizer, templated=_templated(recipe, tokenizer))
    length = min(recipe.max_length or context, context)
    return prepare(recipe, encoder, length, examples, held_out)


def prepare(
    recipe: Recipe,
    encoder: Encoder,
    length: int,
    examples: Sequence[DataLine],
    held_out: Sequence[DataLine] | None = None,
) -> TrainingData:
    """Encode, leave out, split and count."""
    tally = _Tally(recipe, encoder, length)
    with _about("validation"):  # first, so that an example in both files is not trained on
        validation = tally.take(held_out or ())
    with _about("data"):
        train = tally.take(examples)
    if held_out is None:
        train, validation = _split(train, recipe.validation_share)
    if len(train) < FEWEST:
        few = f"{recipe.data} leaves {len(train)} examples to train on"
        raise DataError(f"{few}; at least {FEWEST} are needed", "data")
    counts = DataCounts(
        **tally.found,
        train=len(train),
        train_tokens=sum(item.num_tokens for item in train),
        learnt_tokens=sum(item.num_learnt for item in train),
        validation=len(validation),
        validation_tokens=sum(item.num_tokens for item in validation),
    )
    digest = hashlib.blake2b(b"".join(map(_fingerprint, [*train, *validation])), digest_size=16)
    return TrainingData(tuple(train), tuple(validation), counts, digest.hexdigest())


@contextmanager
def _about(option: str) -> Iterator[None]:
    """An error in here is about the file of an option."""
    try:
        yield
    except DataError as error:
        error.option = option
        raise


def _read(name: str | None) -> list[DataLine]:
    if name is None:
        raise DataError(NEEDED)
    if name == household.NAME:
        return examples_of(name, household.household_rows())
    path = Path(name)
    if path.suffix in (".jsonl", ".json") or path.exists():
        return read_examples(path)
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train")
    except Exception as error:
        raise DataError(f"{name} is no file, and no dataset of the hub: {error}") from error
    return examples_of(name, rows)


def _refuse_other_objective(recipe: Recipe, first: DataLine) -> None:
    is_preference, wants_it = first.rejected is not None, recipe.objective == "dpo"
    if is_preference and not wants_it:
        raise DataError(f"{first.where} is a preference: --objective dpo learns from those")
    if wants_it and not is_preference:
        raise DataError(f"{first.where}: --objective dpo needs prompt, chosen and rejected")


def _templated(recipe: Recipe, tokenizer: Any) -> bool:
    has_template = bool(tokenizer.chat_template)
    if recipe.template == "chat" and not has_template:
        raise DataError(
            f"--template chat: the tokenizer of {recipe.model} has no chat template", "template"
        )
    return has_template and recipe.template != "none"


class _Tally:
    """Encodes one file after the other and counts what it leaves out."""

    def __init__(self, recipe: Recipe, encoder: Encoder, length: int) -> None:
        self._recipe = recipe
        self._encoder = encoder
        self._length = length
        self._seen: set[bytes] = set()
        self.found: Counter[str] = Counter()

    def take(self, examples: Sequence[DataLine]) -> list[Encoded]:
        """What is left of them."""
        self.found["read"] += len(examples)
        encoded = (self._encoder.encode(example) for example in examples)
        fitting = (self._fit(item) for item in encoded if not self._is_double(item))
        return [item for item in fitting if item is not None]

    def _note(self, name: str, num_tokens: int) -> None:
        self.found.update({name: 1, f"{name}_tokens": num_tokens})

    def _is_double(self, item: Encoded) -> bool:
        key = _fingerprint(item)
        is_double = self._recipe.deduplicate and key in self._seen
        self._seen.add(key)
        if is_double:
            self._note("doubles", item.num_tokens)
        return is_double

    def _fit(self, item: Encoded) -> Encoded | None:
        if item.longest <= self._length:
            return item
        if self._recipe.too_long == "refuse":
            raise DataError(
                f"{item.example.where} has {item.longest} tokens, more than {self._length};"
                " --too-long drop or truncate goes on"
            )
        if self._recipe.too_long == "drop":
            self._note("dropped", item.num_tokens)
            return None
        cut = item.cut(self._length)
        if not _is_answered(cut):
            self.found["without_answer"] += 1
            return None
        self._note("truncated", item.num_tokens - cut.num_tokens)
        return cut


def _is_answered(item: Encoded) -> bool:
    """Whether something is left to learn, of both answers where there are two."""
    return any(item.learnt) and (item.rejected is None or any(item.rejected.learnt))


def _split(items: Sequence[Encoded], share: float) -> tuple[list[Encoded], list[Encoded]]:
    """Hold out what has the smallest fingerprints: the same examples, whatever their order."""
    count = round(share * len(items))
    if share and len(items) > FEWEST:
        count = min(max(1, count), len(items) - FEWEST)
    ranked = sorted(range(len(items)), key=lambda i: (_fingerprint(items[i]), i))
    chosen = set(ranked[:count])
    train = [item for i, item in enumerate(items) if i not in chosen]
    return train, [items[i] for i in sorted(chosen)]


def _fingerprint(encoded: Encoded) -> bytes:
    learnt = bytes(encoded.learnt)
    ids = array("q", encoded.ids).tobytes()
    other = _fingerprint(encoded.rejected) if encoded.rejected else b""
    return hashlib.blake2b(ids + learnt + other, digest_size=16).digest()
