"""Bodies that are almost right: what clients get wrong, and what attackers try.

Contract: `mutated` changes a right body in one to three places and gives it as bytes; the same
source of chance gives the same body. Some come out right, as a server should find, too.

Not covered: bodies of uploads.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

Body = dict[str, Any]
RIGHT: Mapping[str, Sequence[Body]] = {
    "/v1/completions": (
        {"model": "bundled", "prompt": "Once", "max_tokens": 2},
        {"model": "bundled", "prompt": [[5, 6], [7]], "max_tokens": 1, "n": 2, "logprobs": 2},
        {
            "model": "bundled", "prompt": [5, 6], "max_tokens": 2, "stream": True,
            "stream_options": {"include_usage": True}, "stop": ["a"], "seed": 3, "echo": True,
        },
    ),
    "/v1/chat/completions": (
        {"model": "bundled", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]},
        {
            "model": "bundled", "max_completion_tokens": 2, "temperature": 0.5, "top_p": 0.9,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            ],
            "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": -1}, "user": "u",
            "metadata": {"a": "b"}, "frequency_penalty": 0.1, "presence_penalty": 0.1,
        },
    ),
    "/tokenize": ({"model": "bundled", "prompt": "Once"},),
    "/detokenize": ({"model": "bundled", "tokens": [5, 6]},),
    "/v1/load_lora_adapter": ({"lora_name": "a", "lora_path": "/nothing"},),
    "/v1/unload_lora_adapter": ({"lora_name": "a"},),
    "/v1/fine_tuning/jobs": (
        {
            "model": "bundled", "training_file": "file-1", "hyperparameters": {"n_epochs": 1},
            "method": {"type": "supervised"}, "recipe": {"rank": 2}, "seed": 1, "suffix": "s",
        },
    ),
}  # fmt: skip
_NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e-40, 1e308, 0.5, -0.0, 1e39, 65_536)
_TEXTS = ("", "\x00", "a" * 5000, "\ud7ff\U0001f600", "<|im_end|>", "../..", "5", "\u202e", "null")
_MANY: tuple[Any, ...] = ([{}] * 50, list(range(3000)))
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, *_MANY)


def junk(source: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say."""
    kind = source.randrange(5 if depth < 3 else 3)
    if kind == 0:
        return source.choice(_NUMBERS)
    if kind == 1:
        return source.choice(_TEXTS)
    if kind == 2:
        return deepcopy(source.choice(_OTHERS))
    if kind == 3:
        return [junk(source, depth + 1) for _ in range(source.randrange(4))]
    return {source.choice(_TEXTS): junk(source, depth + 1) for _ in range(source.randrange(4))}


def mutated(body: Body, source: random.Random) -> bytes:
    """A body with mistakes."""
    changed: Any = json.loads(json.dumps(body))
    for _ in range(source.randint(1, 3)):
        changed = _change(changed, source)
    raw = json.dumps(changed).encode()
    return _damaged(raw, source) if source.random() < 0.1 else raw


def _change(value: Any, source: random.Random) -> Any:
    """A value that differs somewhere."""
    inside = isinstance(value, dict | list) and bool(value) and source.random() < 0.8
    if not inside:
        return junk(source)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = source.choice(keys)
    way = source.randrange(4)
    if way == 0 and isinstance(value, dict):
        del value[key]
    elif way == 1 and isinstance(value, dict):
        value[source.choice((*_TEXTS, "tools", "best_of", "speculative", "approximate"))] = junk(
            source
        )
    else:
        value[key] = _change(value[key], source)
    return value


def _damaged(raw: bytes, source: random.Random) -> bytes:
    """Bytes that may be no JSON any more."""
    at = source.randrange(len(raw) + 1)
    way = source.randrange(3)
    if way == 0:
        return raw[:at]
    if way == 1:
        return raw[:at] + bytes([source.randrange(256)]) + raw[at:]
    return raw[:at] + b"[" * source.choice((1, 100, 50_000)) + raw[at:]
