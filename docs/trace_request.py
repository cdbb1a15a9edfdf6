"""Counts what one chat request passes through: `python docs/trace_request.py`.

Contract: the server is put together by `greenllm serve` itself, in this process and without a
socket; one request (not streamed, one new token, the bundled model on OpenVINO) is followed from
its route to its ledger row, on all threads. Only this project's functions count, and every
resumption of a coroutine is a call. A switch is a call into another file than that of the call
before it on the same thread. Timing moves the figures by a few, so the median of several
requests is reported.
Not covered: time; what C++ does; other kinds of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import httpx
import uvicorn

import greenllm
from greenllm.__main__ import main as greenllm_main

ROOT = Path(greenllm.__file__).resolve().parent.parent
QUIET = ("--log", "off")
PACKAGES = tuple(f"{ROOT / name}/" for name in ("greenllm", "serving", "finetune", "evals"))
OPTIONS = ("--meter", "modelled", "--engine", "native", "--speculative", "off")
BODY = {
    "model": "bundled",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "temperature": 0,
    "max_tokens": 1,
}


@dataclass(frozen=True, slots=True)
class Trace:
    """The project's functions that one request called, as (file, function), by thread."""

    calls: dict[int, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """How often each function was called."""
        return Counter(call for calls in self.calls.values() for call in calls)

    @property
    def switches(self) -> Counter[str]:
        """How often each file was entered from another one."""
        found: Counter[str] = Counter()
        for calls in self.calls.values():
            files = [file for file, _ in calls]
            found.update(after for before, after in pairwise(files) if before != after)
        return found

    def report(self, *, by_file: bool) -> str:
        """The figures, and on request a line for each file."""
        functions = Counter(file for file, _ in self.counts)
        calls = Counter(file for each in self.calls.values() for file, _ in each)
        switches = self.switches
        lines = sum(len(Path(file).read_text("utf-8").splitlines()) for file in functions)
        parts = [
            f"{len(functions)} files ({lines:,} lines), {functions.total()} functions,"
            f" {calls.total()} calls, {switches.total()} switches between files"
        ]
        if by_file:
            parts.append(f"{'file':48}{'functions':>10}{'calls':>7}{'entered':>9}")
            for file in sorted(functions, key=lambda file: -switches[file]):
                short = str(Path(file).relative_to(ROOT))
                parts.append(f"{short:48}{functions[file]:10}{calls[file]:7}{switches[file]:9}")
        return "\n".join(parts)


class Tracer:
    """A profile function for all threads, which notes calls while there is a trace to fill."""

    def __init__(self) -> None:
        self.trace: Trace | None = None

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call of a function of this project."""
        trace, code = self.trace, frame.f_code
        if trace is not None and event == "call" and code.co_filename.startswith(PACKAGES):
            call = (code.co_filename, code.co_qualname)
            trace.calls.setdefault(threading.get_ident(), []).append(call)


async def follow(app: Any, tracer: Tracer, num_requests: int) -> list[Trace]:
    """Start the app, ask once, then as often as said with a trace of each."""
    traces: list[Trace] = []
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        (await client.post("/v1/chat/completions", json=BODY)).raise_for_status()
        for _ in range(num_requests):
            await asyncio.sleep(0.1)  # the engine thread is idle again
            tracer.trace = Trace()
            answer = await client.post("/v1/chat/completions", json=BODY)
            traces.append(tracer.trace)
            tracer.trace = None
            answer.raise_for_status()
    return traces


def traced(num_requests: int) -> list[Trace]:
    """Run `greenllm serve` with uvicorn replaced by a few requests to the app it is given."""
    tracer = Tracer()
    traces: list[Trace] = []

    def run(server: uvicorn.Server, *_: Any, **__: Any) -> None:
        threading.setprofile(tracer)
        sys.setprofile(tracer)
        try:
            traces.extend(asyncio.run(follow(server.config.app, tracer, num_requests)))
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    with tempfile.TemporaryDirectory() as folder:
        command = [
            "greenllm",
            "serve",
            "bundled",
            "--port",
            "0",
            "--data-dir",
            folder,
            *OPTIONS,
            *QUIET,
        ]
        with (
            patch.object(uvicorn.Server, "run", run),
            patch.object(sys, "argv", command),
            suppress(SystemExit),
        ):
            greenllm_main()
    return traces


def main() -> None:
    """Trace some requests and print the figures of the median one."""
    parser = argparse.ArgumentParser(description="Count what one chat request passes through.")
    parser.add_argument("--files", action="store_true", help="a line for each file")
    parser.add_argument("--requests", type=int, default=9, help="how many are traced (9)")
    options = parser.parse_args()
    traces = sorted(traced(options.requests), key=lambda trace: trace.switches.total())
    if not traces:
        sys.exit("the server did not start")
    print(traces[len(traces) // 2].report(by_file=options.files))


if __name__ == "__main__":
    main()
