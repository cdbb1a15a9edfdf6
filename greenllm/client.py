"""Requests for an engine on its own thread, from threads and from asyncio tasks of one process.

Contract: of the requests of one call all are submitted, or none and nothing stays open. Whoever
waits gets an answer or an error, also when the engine stops; who stops waiting ends the work.
Importing this loads no torch.

Not covered: text (see `llm`), HTTP (see `serving.bridge`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from greenllm.choices import gather
from greenllm.core import Request, SamplingParams, new_request_id
from greenllm.engine.loop import EngineLoop, Recorder
from greenllm.engine.protocol import Engine
from greenllm.generation import Generation, GenerationError
from greenllm.inbox import Feed, Inbox, Pending


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for one prompt; `adapter` is a name."""

    token_ids: tuple[int, ...]
    sampling: SamplingParams
    adapter: str | None = None


class EngineClient:
    """Starts the engine's thread, and talks to it; `model` is the official name."""

    def __init__(self, engine: Engine, model: str, ledger: Recorder, session_id: str) -> None:
        self._engine = engine
        self._model = model
        self._inbox = Inbox()
        self._loop = EngineLoop(engine, ledger, session_id, self._inbox)
        self._loop.start()

    def close(self) -> None:
        """Stop the engine; everybody who waits hears of it. Twice does no harm."""
        self._loop.stop()
        self._inbox.failed()

    def submit(self, queries: Sequence[Query], feed: Feed | None = None) -> list[Pending]:
        """Hand requests to the engine.

        Raises:
            GreenllmError: one of them cannot be served, or the engine has stopped.
        """
        requests: list[Request] = []
        try:
            for query in queries:
                requests.append(self._request(query))
            pending = self._inbox.expect(requests, feed)
        except BaseException:
            for request in requests:
                if request.adapter is not None:
                    self._engine.adapters.release(request.adapter)
            raise
        for request in requests:
            self._loop.submit(request)
        return pending

    def _request(self, query: Query) -> Request:
        """A request that the engine can serve; its adapter is acquired."""
        request = Request(
            request_id=new_request_id("llm"),
            prompts=(query.token_ids,),
            work=query.sampling,
            model=self._model,
            endpoint="LLM",
            created_s=time.time(),
        )
        self._engine.check(request)
        if request.needs_preparation:
            self._engine.prepare(request)
        if query.adapter is None:
            return request
        return replace(request, adapter=self._engine.adapters.acquire(query.adapter))

    async def submit_in_task(
        self, queries: Sequence[Query], feed: Feed | None = None
    ) -> list[Pending]:
        """`submit` for asyncio, on a thread, because adapters may have to be read."""
        running = asyncio.get_running_loop().run_in_executor(None, self.submit, queries, feed)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # The thread goes on; what it submits must not be worked on for nobody.
            await asyncio.wait([running])
            if running.exception() is None:
                self.abandon(running.result())
            raise

    def answers(self, pending: Sequence[Pending]) -> list[Generation]:
        """Wait for all; an exception meanwhile ends the work."""
        try:
            for one in pending:
                one.receipt.result()
            return [self.answer(one) for one in pending]
        finally:
            self.abandon(pending)

    async def answers_in_task(self, queries: Sequence[Query]) -> list[Generation]:
        """Submit and wait; cancelling the task ends the work."""
        pending = await self.submit_in_task(queries)
        try:
            for one in pending:
                await asyncio.wrap_future(one.receipt)
            return [self.answer(one) for one in pending]
        finally:
            self.abandon(pending)

    def answer(self, pending: Pending) -> Generation:
        """The answer; waits for it.

        Raises:
            GenerationError: the engine failed on it.
            EngineStoppedError: the engine has stopped.
        """
        receipt, request = pending.receipt.result(), pending.request
        error = next((t.error for t in pending.tokens if t.finish_reason == "error"), None)
        if error is not None:
            raise GenerationError(f"generation failed: {error}", receipt)
        ends = request.sampling.stop_token_ids
        hidden_ids = self._engine.info.eos_token_ids | frozenset(ends)
        choices = gather(pending.tokens, request.num_sequences, hidden_ids)
        return Generation(request.request_id, tuple(choices), receipt)

    def abandon(self, pending: Sequence[Pending]) -> None:
        """Stop the work that nobody waits for any more."""
        for one in pending:
            if not one.receipt.done():
                self._loop.abort(one.request.request_id)
