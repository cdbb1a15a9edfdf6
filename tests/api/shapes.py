"""The wire format, byte for byte but for values that change: it cannot change unseen.

After an intended change, run `test_wire.py` once with UPDATE_GOLDEN=1 and read the difference.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx

GOLDEN = Path(__file__).parent / "golden"
STABLE = {"object", "role", "finish_reason", "model", "type", "param", "code", "status", "owned_by"}
STABLE |= {"measured", "outcome", "endpoint", "group_by", "carbon_intensity_zone", "quantization"}
ID = re.compile(r"(chatcmpl|cmpl|req)-[0-9a-f]{28}")
NUMBER = re.compile(r"(?<![\w<-])\d+(\.\d+)?(?!\w)")


def assert_golden(name: str, text: str) -> None:
    """Compare with the golden file."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} has changed"


def shape(value: Any, key: str = "") -> Any:
    """A JSON value with its changing parts replaced; keys, order, nulls and words stay."""
    if isinstance(value, dict):
        if key == "top_logprobs" and "token" not in value:
            return {"<token>": "<number>"}
        return {name: shape(item, name) for name, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, int) for item in value):
            return "<integers>"
        return [shape(item, key) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return value if key in STABLE else ID.sub(r"<\1>", value) if ID.match(value) else "<text>"
    return value if key == "index" else "<number>"


def pretty(value: Any) -> str:
    return json.dumps(shape(value), indent=1) + "\n"


def transcript(text: str) -> str:
    """A stream with the JSON of each event in its shape."""
    lines: list[str] = []
    for line in text.splitlines():
        prefix, brace, rest = line.partition("{")
        found = json.loads(brace + rest) if brace else None
        lines.append(prefix + json.dumps(shape(found)) if brace else line)
    return "\n".join(lines) + "\n"


def headers(answer: httpx.Response) -> str:
    """Status and headers, sorted, numbers and ids replaced."""
    lines = [f"{answer.status_code}"]
    for name, value in sorted(answer.headers.items()):
        if name in ("date", "content-length", "server", "transfer-encoding"):
            continue
        text = ID.sub(r"<\1>", value)
        text = re.sub(r'source="[^"]+"', 'source="<text>"', text)
        text = re.sub(r"^modelled:[\w-]+$", "modelled:<text>", text)
        lines.append(f"{name}: {NUMBER.sub('<number>', text)}")
    return "\n".join(lines) + "\n"


def metric_names(text: str) -> str:
    """Names, types, help texts and labels; what auto has seen hangs on who used it before."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        sample = re.sub(r'="[^"]*"', "", line.rsplit(" ", 1)[0])
        if not sample.startswith("greenllm_speculation_"):
            found[line if line.startswith("#") else sample] = None
    return "\n".join(found) + "\n"
