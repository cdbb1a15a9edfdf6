"""The page of bounds, from options, constants and schemas.

Contract: every constant of `serving.limits` and every text, list and map of a body is on the page;
the few numbers that other modules keep are taken from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from greenllm.config import LARGEST_FILE_BYTES, default_of, flag
from greenllm.engine.admission import MAX_SEQUENCES
from serving import bodies, connections, limits, patience
from serving.app import create_app
from serving.config import ServeConfig
from serving.front_door import RESERVED_DESCRIPTORS

Json = Mapping[str, Any]
Row = tuple[str, ...]
# Where an option's bound holds, and what is answered when it is passed.
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "max_connections": (
        "connections at a time; fewer where the process may open fewer files",
        "the one that was silent longest is closed; where none is, 503",
    ),
    "client_timeout_s": (
        "seconds for a head; for a pause of a body; for a pause of a client that reads",
        "408, 408, and the connection is closed",
    ),
    "max_queue": (
        "requests that are being generated or wait for it; of one key three quarters",
        "429 `queue_full`",
    ),
    "max_queue_tokens": (
        "tokens that these may come to, each sequence with its prompt",
        "429 `queue_full`, unless the queue is empty",
    ),
    "min_free_memory_mb": (
        "megabytes of memory that must be free, of the machine and of its cgroup",
        "503 `out_of_memory`",
    ),
    "step_timeout_s": (
        "seconds of a step",
        "every open request gets an error, and the server ends",
    ),
    "max_body_mb": ("megabytes of a JSON body", "413"),
    "max_buffered_mb": (
        "megabytes of all bodies that are read or worked on",
        "503 `bodies_full` for those longer than 16,000 bytes",
    ),
    "max_file_mb": ("megabytes of an uploaded file", "413"),
    "max_files": ("files that a key keeps", "429 `insufficient_quota`"),
    "max_stored_mb": (
        "megabytes of a key's files, and of what its waiting jobs have copied",
        "429 `insufficient_quota`",
    ),
    "max_open_jobs": (
        "fine-tuning jobs of a key that wait, run or are paused",
        "429 `insufficient_quota`",
    ),
    "max_job_hours": ("hours of a fine-tuning job", "it is ended"),
    "max_num_seqs": ("sequences in one step", "others wait"),
    "max_context": ("tokens of a prompt and its answer", "400 `context_length_exceeded`"),
    "drain_timeout_s": ("seconds of running requests after SIGTERM", "503, or the stream's end"),
}
# Constants: where they hold, and what is answered.
_CONSTANTS: Mapping[str, tuple[str, str]] = {
    "MOST_HEAD_BYTES": ("bytes of the request line and all headers", "431"),
    "MOST_PIPELINED": ("requests that wait on one connection", "the connection is closed"),
    "LONG_BODY_BYTES": ("bytes of a body that is worked on at once", "larger ones wait their turn"),
    "MOST_VALUES": ("commas and opening brackets of a body", "400"),
    "MOST_CHARACTERS": ("characters of a text, and of messages together", "400"),
    "MOST_TOKEN_IDS": ("token ids of a prompt", "400"),
    "MOST_PROMPTS": ("prompts of a request", "400"),
    "MOST_MESSAGES": ("messages of a conversation", "400"),
    "MOST_PARTS": ("parts of a message", "400"),
    "MOST_STOPS": ("texts that end an answer", "400"),
    "MOST_STOP_CHARACTERS": ("characters of each, and of all together", "400"),
    "MOST_STOP_IDS": ("tokens that end an answer", "400"),
    "MOST_BIASES": ("tokens with a bias", "400"),
    "MOST_LABELS": ("entries of `metadata`", "400"),
    "MOST_RECIPE_OPTIONS": ("options of a recipe", "400"),
    "MOST_SCHEMA_CHARACTERS": ("characters of an answer's schema, as JSON", "400"),
    "MOST_NAME_CHARACTERS": ("characters of a name", "400"),
    "MOST_PATH_CHARACTERS": ("characters of a path", "400"),
    "MOST_KEYS": ("keys of an object", "400"),
    "MOST_LOGPROBS": ("log probabilities of an answer", "400"),
}
_OTHERS: tuple[Row, ...] = (
    (f"{MAX_SEQUENCES}", "choices of a request: prompts times `n`", "400"),
    (
        f"{bodies.DISCARDED_LIMITS}",
        "times `--max-body-mb` of a body that is too large are read and thrown away",
        "413, then the connection is closed",
    ),
    (f"{bodies.LONG_AT_A_TIME}", "long bodies and answers worked on at a time", "others wait"),
    (
        f"{patience.SLOWEST_BYTES_PER_S:,}",
        "bytes a second, on average, of a body",
        "408 after `--client-timeout-s`",
    ),
    (f"{connections.LINGER_S:g}", "seconds in which a refused client is read", "closed"),
    (f"{RESERVED_DESCRIPTORS}", "files that are kept for all but connections", "a warning"),
    ("1 and 8", "files and fields of an upload", "400"),
    ("1000", "entries of a page of a list", "400"),
    (f"{LARGEST_FILE_BYTES:,}", "bytes of a file of options", "the server does not start"),
)


def limits_page() -> str:
    """All bounds: those to choose, those that are fixed, and those of every field of a body."""
    parts = ["# Limits", _INTRODUCTION, "## To choose", _table(_HEADS, list(_options()))]
    parts += ["## Fixed", _table(("bound", "of", "when passed"), [*_constants(), *_OTHERS])]
    parts += ["## Bodies", _BODIES]
    for name, schema in _schemas().items():
        rows = [
            row for path, field in schema.get("properties", {}).items() for row in _of(path, field)
        ]
        if rows:
            parts += [f"### {name}", _table(("field", "bound"), rows)]
    return "\n\n".join(parts) + "\n"


_HEADS = ("option", "default", "of", "when passed")
_INTRODUCTION = (
    "Every input has a bound, and every wait an end. What is refused is told by an OpenAI error"
    " object that names the field and the bound."
)
_BODIES = (
    "Past any of these the answer is 400. Numbers have the ranges of `SamplingParams` in"
    " [the library](library.md)."
)


def _options() -> Iterator[Row]:
    known = {field.name: default_of(field) for field in fields(ServeConfig)}
    for name, (what, answer) in _OPTIONS.items():
        default = "the model's" if known[name] is None else f"{known[name]:g}"
        yield f"`{flag(name)}`", default, what, answer


def _constants() -> Iterator[Row]:
    found = {name: value for name, value in vars(limits).items() if name.isupper() and value}
    numbers = {name: value for name, value in found.items() if isinstance(value, int)}
    if numbers.keys() != _CONSTANTS.keys():
        raise SystemExit(f"not on the page of limits: {numbers.keys() ^ _CONSTANTS.keys()}")
    for name, (what, answer) in _CONSTANTS.items():
        yield f"{numbers[name]:,}", what, answer


def _schemas() -> dict[str, Json]:
    """Schemas of bodies, and of the objects in them."""
    document = create_app(_no_state, ServeConfig()).openapi()
    found: dict[str, Json] = document["components"]["schemas"]
    return {name: schema for name, schema in sorted(found.items()) if name != "Error"}


def _no_state(_: object) -> Any:
    raise NotImplementedError


_WORDS = {
    "maxLength": "{:,} characters",
    "maxItems": "{:,} items",
    "maxProperties": "{:,} entries",
}


def _of(place: str, field: Json) -> Iterator[Row]:
    """Bounds of a field, and of what is in it."""
    for one in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from _of(place, one)
    for key, words in _WORDS.items():
        if key in field:
            yield f"`{place}`", words.format(field[key])
    if isinstance(field.get("items"), dict):
        yield from _of(f"{place}[]", field["items"])
    if isinstance(field.get("additionalProperties"), dict):
        yield from _of(f"{place}.*", field["additionalProperties"])
    if isinstance(field.get("propertyNames"), dict):
        yield from _of(f"{place} (names)", field["propertyNames"])


def _table(headings: Row, rows: list[Row]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
