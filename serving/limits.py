"""How much of everything a request may hold; `docs/reference/limits.md` lists it, with options.

Contract: a bound is checked before what it bounds costs more than its bytes. Bounds that a server
may choose are options (`config.HttpOptions`); these are the same for every server.
"""

from __future__ import annotations

from greenllm.core import MOST_STOP_CHARACTERS as MOST_STOP_CHARACTERS
from greenllm.core import TOO_LONG, InvalidRequestError

# The request line and all headers; more than any client of this API sends.
MOST_HEAD_BYTES = 32_768
# Requests that wait on a connection for the answer to the one before.
MOST_PIPELINED = 16
# A body of this size is worked on beside the event loop: its text takes some 10 ms to encode.
LONG_BODY_BYTES = 16_000
# Commas and opening brackets of a body: JSON of few bytes becomes objects of many.
MOST_VALUES = 300_000
# Encoding a text takes some 300 bytes of memory a character.
MOST_CHARACTERS = 1_000_000
MOST_TOKEN_IDS = 262_144
MOST_PROMPTS = 1024
MOST_MESSAGES = 4096
MOST_PARTS = 1024
MOST_STOPS = 16
MOST_STOP_IDS = 1024
MOST_BIASES = 1024
MOST_LABELS = 16
MOST_RECIPE_OPTIONS = 128
MOST_SCHEMA_CHARACTERS = 65_536
MOST_NAME_CHARACTERS = 512
MOST_PATH_CHARACTERS = 4096
MOST_KEYS = 64
# Log probabilities in one answer, the alternatives to each token among them: some 70 bytes each.
MOST_LOGPROBS = 3_000_000


def check_characters(text: str, param: str) -> str:
    """The text, unless it is longer than what is encoded at once.

    Raises:
        InvalidRequestError: it is.
    """
    check_length(len(text), param)
    return text


def check_length(characters: int, param: str) -> None:
    """Refuse text of so many characters if they are too many.

    Raises:
        InvalidRequestError: they are.
    """
    if characters > MOST_CHARACTERS:
        raise InvalidRequestError(
            f"{param}: {characters} characters, at most {MOST_CHARACTERS} are encoded at once",
            param,
            code=TOO_LONG,
        )


def check_messages(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages of a conversation, unless all of them together are too long.

    Raises:
        InvalidRequestError: they are.
    """
    check_length(sum(len(text) for one in messages for text in one.values()), "messages")
    return messages


def has_too_many_values(raw: bytes) -> bool:
    """Whether JSON would become too many objects; parsing it cannot be interrupted."""
    return sum(map(raw.count, (b",", b"[", b"{"))) > MOST_VALUES
