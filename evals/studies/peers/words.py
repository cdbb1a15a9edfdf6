"""A tokenizer whose texts and token counts are known: every peer can load it.

Contract: byte-level BPE of GPT-2's kind, so `tokenizer.json` and GGUF read it alike. Beyond the 256
bytes its entries are `Ab` (an upper and a lower case letter) and `AbCd`, so a word `AbCd` after a
space is always two tokens. The last entry is a special token that nothing uses (OpenVINO's
tokenizers do not convert without one); there is no end-of-sequence token.

Not covered: real text, which falls apart into bytes.
"""

from __future__ import annotations

import itertools
import json
import random
import string
from pathlib import Path
from typing import Any

from evals.load.plan import Shot

VOCABULARY = 49_152
UNUSED = "<|unused|>"
PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = itertools.count(256)
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def pairs() -> list[str]:
    """`Aa` to `Zz`."""
    return [a + b for a in string.ascii_uppercase for b in string.ascii_lowercase]


def words() -> list[str]:
    """`AbCd`, as many as the vocabulary has room for."""
    return [a + b for a, b in itertools.islice(itertools.product(pairs(), pairs()), num_words())]


def num_words() -> int:
    """How many words the vocabulary has room for."""
    return VOCABULARY - 256 - len(pairs()) - 1


def vocabulary() -> list[str]:
    """All entries in the order of their ids."""
    return [*byte_letters(), *pairs(), *words(), UNUSED]


def merges() -> list[tuple[str, str]]:
    """What is joined, in order."""
    return [(p[0], p[1]) for p in pairs()] + [(w[:2], w[2:]) for w in words()]


def tokenizer_json() -> dict[str, Any]:
    """The contents of `tokenizer.json`."""
    entries = {text: number for number, text in enumerate(vocabulary())}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    unused = {"id": VOCABULARY - 1, "content": UNUSED, "special": True, **flags}
    model = {"type": "BPE", "vocab": entries, "merges": [list(pair) for pair in merges()]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [unused],
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZER | {"use_regex": True},
        "post_processor": None,
        "decoder": PRE_TOKENIZER | {"use_regex": True},
        "model": model | {"dropout": None, "unk_token": None, "byte_fallback": False},
    }


def write_tokenizer(folder: Path, context: int) -> None:
    """Write the files that `AutoTokenizer` reads."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def text_of(seed: int, shot: Shot) -> str:
    """A text of exactly as many tokens as the shot's prompt has; an odd one begins with a dot."""
    rng = random.Random(f"{seed}-{shot.index}")
    drawn = (word_at(rng.randrange(num_words())) for _ in range(shot.prompt_tokens // 2))
    return "." * (shot.prompt_tokens % 2) + "".join(f" {word}" for word in drawn)


def word_at(index: int) -> str:
    """One word by its place, without making them all."""
    all_pairs = pairs()
    return all_pairs[index // len(all_pairs)] + all_pairs[index % len(all_pairs)]
