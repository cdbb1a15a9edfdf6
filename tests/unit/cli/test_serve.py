"""What `greenllm serve` says when it is ready."""

from __future__ import annotations

import json
import shlex

import pytest

from greenllm.cli.serve import curl_line


@pytest.mark.parametrize("with_key", [False, True])
def test_the_line_to_try_is_a_request_that_would_be_let_in(with_key: bool) -> None:
    words = shlex.split(curl_line("http://localhost:1", "bundled", with_key=with_key))
    assert words[:3] == ["curl", "-si", "http://localhost:1/v1/chat/completions"]
    assert ("Authorization: Bearer $KEY" in words) == with_key
    assert json.loads(words[-1])["messages"][0]["role"] == "user"
