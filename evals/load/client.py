"""Sends shots to a server and times what comes back.

Contract: one `Answer` per shot, whatever happens, within `timeout_s`; nothing is sent again. The
environment's proxies are not used, so what is meant for this machine stays on it. The client is
lean, because it shares the server's cores: one event loop, bodies made when they are sent.

Not covered: HTTP/2, answers that are not streamed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from evals.load.figures import LoadAnswer
from evals.load.plan import Shot, prompt_ids, prompt_text
from evals.load.stream import StreamReader, excerpt
from greenllm.core import GreenllmError

CONNECT_TIMEOUT_S = 10.0
MAX_BODY = 64 << 10
KEY_HINT = " (give the key with --api-key)"


class TargetError(GreenllmError):
    """The server cannot be talked to."""


class NoModelError(TargetError):
    """The server answers, but lists no model."""


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """A server, and how to ask it: what it takes, and how its streams end."""

    url: str
    model: str
    api_key: str | None = None
    chat: bool = False
    vocabulary: int = 1024
    seed: int = 0
    timeout_s: float = 300.0
    fixed_length: bool = True
    prompts_as_text: bool = False
    ends_with_done: bool = True
    never_send: frozenset[str] = frozenset()
    prompt_text: Callable[[int, Shot], str] = prompt_text

    def body(self, shot: Shot) -> dict[str, Any]:
        """The request of a shot."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": shot.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.fixed_length:
            body["ignore_eos"] = True
        if self.chat:
            body["messages"] = [{"role": "user", "content": self.prompt_text(self.seed, shot)}]
        elif self.prompts_as_text:
            body["prompt"] = self.prompt_text(self.seed, shot)
        else:
            body["prompt"] = prompt_ids(self.seed, shot, self.vocabulary)
        return {name: value for name, value in body.items() if name not in self.never_send}

    @property
    def path(self) -> str:
        """Where requests go."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"


@asynccontextmanager
async def session(api_key: str | None, timeout_s: float) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections to a server, a new one for each request: some servers close theirs after any."""
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, trust_env=False
    ) as opened:
        yield opened


async def shoot(
    http: aiohttp.ClientSession, target: LoadTarget, shot: Shot, late_s: float
) -> LoadAnswer:
    """Send one request and read its answer to the end."""
    body = json.dumps(target.body(shot)).encode()
    sent_s = time.monotonic()
    reader, failure = StreamReader(ends_with_done=target.ends_with_done), None
    try:
        failure = await _read(http, target, body, reader)
    except TimeoutError:
        failure = f"no whole answer within {target.timeout_s:g} s"
    except aiohttp.ClientConnectorError as error:
        failure = f"unreachable: {_reason(error)}"
    except (aiohttp.ClientError, OSError) as error:
        failure = f"cut short: {_reason(error)}"
    failure = failure or reader.failure(shot.max_tokens, fixed_length=target.fixed_length)
    return _answer(reader, shot, sent_s, late_s, failure)


async def _read(
    http: aiohttp.ClientSession, target: LoadTarget, body: bytes, reader: StreamReader
) -> str | None:
    headers = {"Content-Type": "application/json"}
    async with http.post(target.url + target.path, data=body, headers=headers) as response:
        if response.status != 200:
            return f"HTTP {response.status}: {excerpt(await response.content.read(MAX_BODY))}"
        if response.content_type != "text/event-stream":
            return f"not a stream: {response.content_type}"
        async for data in response.content.iter_any():
            reader.feed(data, time.monotonic())
    return None


def _answer(
    reader: StreamReader, shot: Shot, sent_s: float, late_s: float, failure: str | None
) -> LoadAnswer:
    energy = reader.usage.get("energy")
    energy = energy if isinstance(energy, dict) else {}
    prompt_tokens = reader.usage.get("prompt_tokens")
    return LoadAnswer(
        sent_s=sent_s,
        ended_s=time.monotonic(),
        first_s=reader.first_s,
        last_s=reader.last_s,
        prompt_tokens=prompt_tokens if isinstance(prompt_tokens, int) else None,
        completion_tokens=reader.tokens(shot.max_tokens) or 0,
        energy_j=energy.get("energy_joules"),
        energy_method=energy.get("method"),
        late_s=late_s,
        failure=failure,
    )


async def first_model(url: str, api_key: str | None, timeout_s: float = 30.0) -> str:
    """Name of the first model that a server lists; shows that it can be reached.

    Raises:
        TargetError: it cannot be reached, refuses, or lists nothing.
    """
    try:
        async with (
            session(api_key, timeout_s) as http,
            http.get(f"{url}/v1/models") as response,
        ):
            body = await response.content.read(MAX_BODY)
            if response.status != 200:
                hint = KEY_HINT if response.status in (401, 403) else ""
                answer = f"HTTP {response.status}: {excerpt(body)}"
                raise TargetError(f"{url}/v1/models: {answer}{hint}")
            return str(json.loads(body)["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise TargetError(f"{url} cannot be reached: {_reason(error)}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise NoModelError(f"{url}/v1/models lists no model; name one with --model") from error


def _reason(error: BaseException) -> str:
    """The operating system's words for what failed, without aiohttp's around them."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.strerror:
        error = error.os_error
    number = (isinstance(error, OSError) and error.errno) or 0
    if number in errno.errorcode:
        return os.strerror(number)
    said = isinstance(error, OSError) and error.strerror
    return said or re.sub(r" ssl:\S+", "", str(error)) or type(error).__name__
