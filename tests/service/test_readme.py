"""The README's transcript is what its own command still answers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

README = Path(__file__).parents[2] / "README.md"


def _transcript() -> tuple[list[str], set[str], dict[str, object]]:
    """The curl command, the header names and the body of the README's transcript."""
    text = README.read_text(encoding="utf-8")
    found = re.search(r"```console\n\$ (curl .*?)\n(HTTP.*?)\n\n(\{.*?)\n```", text, re.DOTALL)
    assert found is not None, "README.md has no transcript"
    command = shlex.split(found[1].replace("\\\n", " "))
    names = {line.partition(":")[0].lower() for line in found[2].splitlines()[1:]}
    return command, names, json.loads(found[3])


def _shape(value: object) -> object:
    """Keys of nested objects, without their values."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value[:1]]
    return None


def test_the_transcript_is_current(server_url: str) -> None:
    command, names, body = _transcript()
    here = urlsplit(server_url).netloc
    command = [re.sub(r"localhost:8000", here, word) for word in command]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    head, _, payload = answer.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    got = {line.partition(":")[0].lower() for line in head.splitlines()[1:]}
    assert got == names
    assert _shape(json.loads(payload)) == _shape(body)
