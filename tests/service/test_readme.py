"""Transcripts in the README and the tutorial are what their own commands still answer."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def _found(pattern: str, page: str) -> re.Match[str]:
    found = re.search(pattern, page, re.DOTALL)
    assert found is not None, "the page has no such transcript"
    return found


def _ask(command: str, server_url: str) -> str:
    """Run a page's curl command against the server of the tests."""
    here = urlsplit(server_url).netloc
    words = [re.sub(r"localhost:8000", here, word) for word in shlex.split(command)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _names(headers: str) -> set[str]:
    return {line.partition(":")[0].lower() for line in headers.splitlines()[1:]}


def _shape(value: object) -> object:
    """Keys of nested objects, without their values."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value[:1]]
    return None


def test_the_headers_are_current(server_url: str) -> None:
    shown = _found(r"```console\n\$ (curl .*?)\n(HTTP.*?)\n\n(.*?)\n```", README)
    head, _, body = _ask(shown[1], server_url).replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert _names(head) == _names(shown[2])
    keys = re.findall(r'"(\w+)":', shown[3])
    assert keys
    assert set(keys) <= set(re.findall(r'"(\w+)":', body))


def test_the_body_is_current(server_url: str) -> None:
    shown = _found(r"\$ (curl [^\n]*) \| python3 -m json.tool\n(\{.*?\n\})\n", TUTORIAL)
    body = json.loads(_ask(shown[1], server_url))
    assert _shape(body) == _shape(json.loads(shown[2]))


def test_the_library_answers_as_shown() -> None:
    shown = _found(r"\$ python -c '\n(from greenllm .*?)'\n(.*?)```", README)
    done = subprocess.run([sys.executable, "-c", shown[1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figure = re.compile(r"[\d.e-]+ J")
    assert figure.sub("", done.stdout) == figure.sub("", shown[2])
    assert figure.search(done.stdout)
