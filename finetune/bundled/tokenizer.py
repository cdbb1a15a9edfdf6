"""A byte-level BPE tokenizer of 1024 entries, trained on the generated text.

Contract: any UTF-8 text round-trips exactly, each digit is a token of its own, and chats use the
ChatML layout. Not covered: efficiency on text unlike the generated kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finetune.bundled.example import Example
from finetune.bundled.tasks import training_examples

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
PAD: Final = "<|pad|>"
VOCABULARY: Final = 1024
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


def _texts(examples: Iterable[Example]) -> Iterable[str]:
    """What the merges are learned from."""
    for example in examples:
        for message in example.messages:
            yield f"{message.role}\n{message.content}"


def train_tokenizer(seed: int, examples: int = 20_000) -> PreTrainedTokenizerFast:
    """A tokenizer learned from the first examples of the training stream."""
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
    bpe.train_from_iterator(_texts(islice(training_examples(seed), examples)), trainer)
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


def plain_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text, with nothing added."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def encode(tokenizer: PreTrainedTokenizerFast, example: Example, other_weight: float) -> Encoded:
    """A conversation as ids; weight 1 on what the assistant must produce."""
    ids: list[int] = []
    weights: list[float] = []
    for message in example.messages:
        head = plain_ids(tokenizer, f"{TURN_START}{message.role}\n")
        body = plain_ids(tokenizer, f"{message.content}{TURN_END}")
        tail = plain_ids(tokenizer, "\n")
        body_weight = 1.0 if message.role == "assistant" else other_weight
        ids += head + body + tail
        weights += [other_weight] * len(head) + [body_weight] * len(body)
        weights += [other_weight] * len(tail)
    ids += plain_ids(tokenizer, END_OF_TEXT)
    return Encoded(tuple(ids), (*weights, other_weight))
