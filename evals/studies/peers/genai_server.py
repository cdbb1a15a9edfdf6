"""A thin streaming server around OpenVINO GenAI's ContinuousBatchingPipeline, which has none.

`python genai_server.py FOLDER --port N --threads N --max-num-seqs N`

Contract: runs in OpenVINO GenAI's environment, not in greenllm's, and imports nothing of greenllm.
`/v1/completions` with a list of token ids, greedy, streamed, of fixed length; `/v1/models`. One
thread steps the pipeline and hands each step's tokens to the event loop at once, so what is
measured is the pipeline and hardly this server. The prefix cache is off.

Not covered: everything else of the protocol; characters that fall between two tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import queue
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai as genai
from aiohttp import web

Work = tuple[int, Any, Any, "asyncio.Queue[list[int] | None]"]


class Stepper:
    """The pipeline and the thread that steps it."""

    def __init__(self, options: argparse.Namespace, loop: asyncio.AbstractEventLoop) -> None:
        settings = genai.SchedulerConfig()
        settings.cache_size = 1
        settings.max_num_seqs = options.max_num_seqs
        settings.max_num_batched_tokens = 512
        settings.dynamic_split_fuse = True
        settings.enable_prefix_caching = False
        threads = {"INFERENCE_NUM_THREADS": options.threads}
        self.pipeline = genai.ContinuousBatchingPipeline(options.folder, settings, "CPU", threads)
        self.tokenizer = self.pipeline.get_tokenizer()
        self._tensor = type(self.tokenizer.encode(".").input_ids)
        self._loop = loop
        self._inbox: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._running: dict[int, tuple[Any, asyncio.Queue[list[int] | None]]] = {}
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, ids: list[int], max_tokens: int) -> asyncio.Queue[list[int] | None]:
        """Start a request; its queue gets lists of tokens, then None."""
        config = genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.set_eos_token_id(0)  # the tokenizer has none, and -1 is refused
        config.do_sample = False
        tensor = self._tensor(np.array([ids], dtype=np.int64))
        answers: asyncio.Queue[list[int] | None] = asyncio.Queue()
        self._inbox.put((next(self._numbers), tensor, config, answers))
        return answers

    def _run(self) -> None:
        try:
            self._turn()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # it never ends by itself; a dead server is better than one that hangs

    def _turn(self) -> None:
        while True:
            while not self._running or not self._inbox.empty():
                number, tensor, config, answers = self._inbox.get()
                handle = self.pipeline.add_request(number, tensor, config)
                self._running[number] = (handle, answers)
            self.pipeline.step()
            self._loop.call_soon_threadsafe(_deliver, self._read())

    def _read(self) -> list[tuple[asyncio.Queue[list[int] | None], list[int] | None]]:
        news: list[tuple[asyncio.Queue[list[int] | None], list[int] | None]] = []
        for number, (handle, answers) in list(self._running.items()):
            if handle.can_read():
                (output,) = handle.read().values()
                news.append((answers, list(output.generated_ids)))
            if handle.get_status() != genai.GenerationStatus.RUNNING and not handle.can_read():
                news.append((answers, None))
                del self._running[number]
        return news


def _deliver(news: list[tuple[asyncio.Queue[list[int] | None], list[int] | None]]) -> None:
    for answers, ids in news:
        answers.put_nowait(ids)


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def completions(request: web.Request) -> web.StreamResponse:
    """Stream an answer."""
    body = await request.json()
    prompt, stepper = body["prompt"], request.app["stepper"]
    answers = stepper.add(prompt, body["max_tokens"])
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    head = {"object": "text_completion", "model": body["model"]}
    count = 0
    while (ids := await answers.get()) is not None:
        count += len(ids)
        reason = "length" if count >= body["max_tokens"] else None
        choice = {"index": 0, "text": stepper.tokenizer.decode(ids), "finish_reason": reason}
        await response.write(event({**head, "choices": [choice]}))
    usage = {"prompt_tokens": len(prompt), "completion_tokens": count}
    await response.write(event({**head, "choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def models(request: web.Request) -> web.Response:
    """The one model."""
    return web.json_response({"data": [{"id": request.app["name"]}]})


async def make_app(options: argparse.Namespace) -> web.Application:
    """Load and route."""
    app = web.Application()
    app["name"] = Path(options.folder).name
    app["stepper"] = Stepper(options, asyncio.get_running_loop())
    app.add_routes([web.get("/v1/models", models), web.post("/v1/completions", completions)])
    return app


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, required=True)
    options = parser.parse_args()
    web.run_app(make_app(options), host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
