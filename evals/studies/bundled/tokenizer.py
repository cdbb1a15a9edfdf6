"""A byte-level BPE tokenizer of 1024 entries, trained on generated and real text.

Contract: any UTF-8 text round-trips exactly, each digit is a token of its own, and chats use the
ChatML layout. Not covered: efficiency on text unlike both kinds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evals.studies.bundled.text import Library
from evals.tasks.generated.example import Example
from evals.tasks.generated.tasks import training_examples

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
PAD: Final = "<|pad|>"
VOCABULARY: Final = 1024
TEXT_PIECES: Final = 2_000
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Encoded:
    """Token ids of one conversation, with the loss weight of each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def _texts(examples: Iterable[Example]) -> Iterator[str]:
    """What the merges are learned from."""
    for example in examples:
        for message in example.messages:
            yield f"{message.role}\n{message.content}"


def train_tokenizer(seed: int, library: Library, examples: int = 20_000) -> PreTrainedTokenizerFast:
    """A tokenizer learned from the start of the training stream and from some of the text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    real = islice((piece for block in library.training for piece in block), TEXT_PIECES)
    generated = _texts(islice(training_examples(seed), examples))
    bpe.train_from_iterator(chain(generated, real), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[END_OF_TEXT, TURN_START],
        chat_template=CHAT_TEMPLATE,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json and a tokenizer_config.json that older releases read as well."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": PAD,
        "additional_special_tokens": [END_OF_TEXT, TURN_START],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer from its folder."""
    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def plain_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text, with nothing added."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


class Encoder:
    """Conversations and plain texts as ids; weight 1 on what the model must produce."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, other_weight: float) -> None:
        self._tokenizer = tokenizer
        self._other_weight = other_weight
        self._heads = {
            role: plain_ids(tokenizer, f"{TURN_START}{role}\n")
            for role in ("system", "user", "assistant")
        }
        [self._turn_end] = plain_ids(tokenizer, TURN_END)
        self._newline = plain_ids(tokenizer, "\n")
        [self._end] = plain_ids(tokenizer, END_OF_TEXT)

    def conversation(self, example: Example) -> Encoded:
        """The ids that the chat template gives, ended by the end of text."""
        ids: list[int] = []
        weights: list[float] = []
        for message in example.messages:
            head = self._heads[message.role]
            body = [*plain_ids(self._tokenizer, message.content), self._turn_end]
            body_weight = 1.0 if message.role == "assistant" else self._other_weight
            ids += head + body + self._newline
            weights += [self._other_weight] * len(head) + [body_weight] * len(body)
            weights += [self._other_weight] * len(self._newline)
        return Encoded((*ids, self._end), (*weights, self._other_weight))

    def text(self, text: str) -> Encoded:
        """A text after nothing, ended by the end of text."""
        ids = (*plain_ids(self._tokenizer, text), self._end)
        return Encoded(ids, (1.0,) * len(ids))
