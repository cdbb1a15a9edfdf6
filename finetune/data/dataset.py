"""What a run trains and is scored on: read, encoded, without doubles, none too long, counted.

Contract: the same recipe gives the same examples in the same order on every machine. Examples that
are left out are counted with their tokens; of doubles the first stays, also across the split, so
that nothing is scored that was trained on.

Not covered: streaming; data larger than memory.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.data import household
from finetune.data.encoding import Encoded, Encoder
from finetune.data.examples import DataError, Example, examples_of, read_examples
from finetune.recipe import Recipe

FEWEST = 2
NEEDED = f"--data is needed: a JSONL file, {household.NAME!r}, or a hub dataset's id"


@dataclass(frozen=True, slots=True)
class Counts:
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

    def as_dict(self) -> dict[str, int]:
        """For reports."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Data:
    """Encoded examples; `digest` is that of everything read."""

    train: tuple[Encoded, ...]
    validation: tuple[Encoded, ...]
    counts: Counts
    digest: str


def load_data(recipe: Recipe, tokenizer: Any, context: int) -> Data:
    """Read and prepare what the recipe names.

    Raises:
        DataError: there is too little, or something that cannot be used.
    """
    examples = _read(recipe.data)
    _refuse_other_objective(recipe, examples[0])
    encoder = Encoder(tokenizer, templated=_templated(recipe, tokenizer))
    length = min(recipe.max_length or context, context)
    held_out = None if recipe.validation is None else read_examples(recipe.validation)
    if held_out is not None:
        _refuse_other_objective(recipe, held_out[0])
    return prepare(recipe, encoder, length, examples, held_out)


def prepare(
    recipe: Recipe,
    encoder: Encoder,
    length: int,
    examples: Sequence[Example],
    held_out: Sequence[Example] | None = None,
) -> Data:
    """Encode, leave out, split and count."""
    tally = _Tally(recipe, encoder, length)
    if held_out is None:
        train, validation = _split(tally.take(examples), recipe.validation_share)
    else:
        # Validation first: an example in both files is not trained on.
        validation = tally.take(held_out)
        train = tally.take(examples)
    if len(train) < FEWEST:
        raise DataError(
            f"{recipe.data} leaves {len(train)} examples to train on; at least {FEWEST} are needed"
        )
    counts = tally.counts(train, validation)
    return Data(tuple(train), tuple(validation), counts, _digest([*train, *validation]))


def _read(name: str | None) -> list[Example]:
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


def _refuse_other_objective(recipe: Recipe, first: Example) -> None:
    is_preference, wants_it = first.rejected is not None, recipe.objective == "dpo"
    if is_preference and not wants_it:
        raise DataError(f"{first.where} is a preference: --objective dpo learns from those")
    if wants_it and not is_preference:
        raise DataError(f"{first.where}: --objective dpo needs prompt, chosen and rejected")


def _templated(recipe: Recipe, tokenizer: Any) -> bool:
    has_template = bool(tokenizer.chat_template)
    if recipe.template == "chat" and not has_template:
        raise DataError(f"--template chat: the tokenizer of {recipe.model} has no chat template")
    return has_template and recipe.template != "none"


class _Tally:
    """Encodes one file after the other and counts what it leaves out."""

    def __init__(self, recipe: Recipe, encoder: Encoder, length: int) -> None:
        self._recipe = recipe
        self._encoder = encoder
        self._length = length
        self._seen: set[bytes] = set()
        self._found: dict[str, int] = {}

    def take(self, examples: Sequence[Example]) -> list[Encoded]:
        """What is left of them."""
        self._add("read", len(examples))
        kept: list[Encoded] = []
        for example in examples:
            encoded = self._encoder.encode(example)
            if not self._is_double(encoded) and (fitting := self._fit(encoded)) is not None:
                kept.append(fitting)
        return kept

    def counts(self, train: Sequence[Encoded], validation: Sequence[Encoded]) -> Counts:
        """Everything counted."""
        return Counts(
            **self._found,
            train=len(train),
            train_tokens=sum(item.num_tokens for item in train),
            learnt_tokens=sum(item.num_learnt for item in train),
            validation=len(validation),
            validation_tokens=sum(item.num_tokens for item in validation),
        )

    def _add(self, name: str, count: int) -> None:
        self._found[name] = self._found.get(name, 0) + count

    def _is_double(self, encoded: Encoded) -> bool:
        key = _fingerprint(encoded)
        is_double = self._recipe.deduplicate and key in self._seen
        self._seen.add(key)
        if is_double:
            self._add("doubles", 1)
            self._add("doubles_tokens", encoded.num_tokens)
        return is_double

    def _fit(self, encoded: Encoded) -> Encoded | None:
        if encoded.longest <= self._length:
            return encoded
        if self._recipe.too_long == "refuse":
            raise DataError(
                f"{encoded.example.where} has {encoded.longest} tokens, more than {self._length};"
                " --too-long drop or truncate goes on"
            )
        if self._recipe.too_long == "drop":
            self._add("dropped", 1)
            self._add("dropped_tokens", encoded.num_tokens)
            return None
        cut = encoded.cut(self._length)
        if not _is_answered(cut):
            self._add("without_answer", 1)
            return None
        self._add("truncated", 1)
        self._add("truncated_tokens", encoded.num_tokens - cut.num_tokens)
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


def _digest(items: Sequence[Encoded]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for item in items:
        found.update(_fingerprint(item))
    return found.hexdigest()
