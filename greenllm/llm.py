"""`greenllm.LLM`: a model in this process, from Python. Every answer has its receipt.

    with LLM("bundled") as llm:
        answer = llm.generate("Tell me a story.", SamplingParams(max_tokens=40))
        print(answer.text, answer.receipt.total_j, "J")

It is the engine that `greenllm serve` runs, with the same options, without HTTP. Prompts of one
call, and calls from several threads or tasks, share batches; each prompt is a request with a
receipt of its own. Importing this module loads no torch; making an `LLM` does.

Not covered: several models in one process (each would claim the machine's idle joules).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeGuard, cast, overload

from greenllm.choices import gather
from greenllm.config import load
from greenllm.core import (
    InvalidRequestError,
    Request,
    SamplingParams,
    Token,
    new_request_id,
)
from greenllm.generation import Generation, GenerationError, Pieces, Stream, first_text
from greenllm.inbox import EngineStoppedError, Feed, Inbox, Pending
from greenllm.options import EngineConfig

if TYPE_CHECKING:
    from greenllm.model.adapters import AdapterInfo

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, str]]


class LLM:
    """A loaded model; safe to use from several threads.

    Args:
        model: `bundled`, a model folder or a hub id.
        record: whether receipts go to the ledger in `data_dir`, as a server's do.
        options: the engine's options by name, as in `greenllm serve --help` without HTTP's.

    Raises:
        GreenllmError: an option is wrong, or the model cannot be loaded.
    """

    def __init__(self, model: str = "bundled", *, record: bool = False, **options: Any) -> None:
        from greenllm.energy.meters.choose import open_meter
        from greenllm.energy.meters.scope import Scope
        from greenllm.energy.session import open_ledger
        from greenllm.engine.loop import EngineLoop
        from greenllm.load import load_engine

        config = load(EngineConfig, flags={"model": model, **options})
        meter, first = open_meter(config, Scope(gpus=config.device != "cpu"))
        self._served = load_engine(config, meter, first)
        self._engine = self._served.engine
        self._ledger, session_id = None, ""
        if record:
            self._ledger, session_id = open_ledger(config, meter, self._served.info.parameters)
        self._engine.account.start_serving()
        self._inbox = Inbox()
        self._loop = EngineLoop(self._engine, self._ledger or NoLedger(), session_id, self._inbox)
        self._loop.start()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what is in flight, close the books and stop the engine. Twice does no harm."""
        if self._loop.is_alive:
            self._loop.stop()
            self._inbox.failed()
            if self._ledger is not None:
                self._ledger.close()

    @property
    def name(self) -> str:
        """The model's official name, as in receipts."""
        return self._served.name

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The LoRA adapters that `adapter=` may name."""
        return tuple(self._engine.adapters.list())

    def load_adapter(self, name: str, folder: Path | str) -> AdapterInfo:
        """Make a LoRA adapter in a folder known under a name.

        Raises:
            GreenllmError: it does not fit the model, or the name is taken.
        """
        return self._engine.adapters.add(name, Path(folder))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that use it finish."""
        self._engine.adapters.remove(name)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a string is a sequence of strings too
        self, prompts: str, sampling: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[Generation]: ...

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        sampling: SamplingParams | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> Generation | list[Generation]:
        """Continue one prompt, or several in one batch, each text or token ids.

        `adapter` is one for all prompts, or one (or None) for each.

        Raises:
            InvalidRequestError: a prompt or a parameter cannot be served.
            GenerationError: the engine failed on one of them.
        """
        asked, sampling = _as_list(prompts), sampling or SamplingParams()
        pending = self._submit_all([self._ids(p) for p in asked], sampling, adapter)
        answers = self._wait_for(pending)
        return answers[0] if isinstance(prompts, str) else answers

    def chat(
        self,
        messages: Messages,
        sampling: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Generation:
        """Answer a conversation: dictionaries with `role` and `content`.

        Without `sampling` the answer may fill the context.
        """
        ids = self._chat_ids(messages)
        pending = self._submit_all([ids], sampling or self._to_the_end(ids), adapter)
        return self._wait_for(pending)[0]

    def stream(
        self,
        prompt: Prompt | Messages,
        sampling: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Stream:
        """The same for one prompt or conversation, piece by piece; see `Stream`."""
        pieces = Pieces()
        ids, sampling = self._prepared(prompt, sampling)
        pending = self._submit(ids, sampling, adapter, pieces.put)
        return Stream(
            pieces, lambda: self._wait_for([pending])[0], lambda: self._abandon([pending])
        )

    async def agenerate(
        self,
        prompts: str | Sequence[Prompt],
        sampling: SamplingParams | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> Generation | list[Generation]:
        """`generate` for asyncio; a task that is cancelled stops the work."""
        asked, sampling = _as_list(prompts), sampling or SamplingParams()
        pending = await asyncio.to_thread(
            lambda: self._submit_all([self._ids(p) for p in asked], sampling, adapter)
        )
        answers = await self._wait_in_task(pending)
        return answers[0] if isinstance(prompts, str) else answers

    async def achat(
        self,
        messages: Messages,
        sampling: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Generation:
        """`chat` for asyncio."""
        ids = self._chat_ids(messages)
        pending = await asyncio.to_thread(
            self._submit_all, [ids], sampling or self._to_the_end(ids), adapter
        )
        return (await self._wait_in_task(pending))[0]

    async def astream(
        self,
        prompt: Prompt | Messages,
        sampling: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> AsyncIterator[str | Generation]:
        """`stream` for asyncio: pieces of text, and at last the whole `Generation`."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Token | None]()
        ids, sampling = self._prepared(prompt, sampling)

        def feed(token: Token | None) -> None:
            # The caller's loop may have been closed before the engine heard of it.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(pieces.put_nowait, token)

        pending = await asyncio.to_thread(self._submit, ids, sampling, adapter, feed)
        try:
            while (token := await pieces.get()) is not None:
                if text := first_text(token):
                    yield text
            yield self._generation(pending)
        finally:
            self._abandon([pending])

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        tokenizer = self._served.tokenizer
        return tuple(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)

    def _chat_ids(self, messages: Messages) -> tuple[int, ...]:
        tokenizer = self._served.tokenizer
        text = tokenizer.chat([dict(one) for one in messages], add_generation_prompt=True)
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def _prepared(
        self, prompt: Prompt | Messages, sampling: SamplingParams | None
    ) -> tuple[tuple[int, ...], SamplingParams]:
        if _is_conversation(prompt):
            ids = self._chat_ids(prompt)
            return ids, sampling or self._to_the_end(ids)
        return self._ids(cast(Prompt, prompt)), sampling or SamplingParams()

    def _to_the_end(self, ids: tuple[int, ...]) -> SamplingParams:
        """Leave an answer the rest of the context."""
        return SamplingParams(max_tokens=max(1, self._served.info.context_length - len(ids)))

    def _submit_all(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: SamplingParams,
        adapter: str | Sequence[str | None] | None,
    ) -> list[Pending]:
        if adapter is None or isinstance(adapter, str):
            adapter = [adapter] * len(prompts)
        if len(adapter) != len(prompts):
            raise InvalidRequestError(
                f"{len(prompts)} prompts, but {len(adapter)} adapters", "adapter"
            )
        pending: list[Pending] = []
        try:
            for ids, name in zip(prompts, adapter, strict=True):
                pending.append(self._submit(ids, sampling, name, None))
        except BaseException:
            self._abandon(pending)
            raise
        return pending

    def _submit(
        self,
        ids: tuple[int, ...],
        sampling: SamplingParams,
        adapter: str | None,
        feed: Feed | None,
    ) -> Pending:
        """Check a request, get its adapter ready, and hand it to the engine."""
        if not self._loop.is_alive:
            raise EngineStoppedError("this LLM is closed, or its engine has stopped")
        request = Request(
            request_id=new_request_id("llm"),
            prompts=(ids,),
            work=sampling,
            model=self._served.name,
            endpoint="LLM",
            created_s=time.time(),
        )
        self._engine.check(request)
        if request.needs_preparation:
            self._engine.prepare(request)
        if adapter is not None:
            request = replace(request, adapter=self._engine.adapters.acquire(adapter))
        pending = Pending(request, feed)
        self._inbox.expect(pending)
        self._loop.submit(request)
        return pending

    def _wait_for(self, pending: Sequence[Pending]) -> list[Generation]:
        try:
            for one in pending:
                one.receipt.result()
            return [self._generation(one) for one in pending]
        finally:
            self._abandon(pending)

    async def _wait_in_task(self, pending: Sequence[Pending]) -> list[Generation]:
        try:
            for one in pending:
                await asyncio.wrap_future(one.receipt)
            return [self._generation(one) for one in pending]
        finally:
            self._abandon(pending)

    def _generation(self, pending: Pending) -> Generation:
        receipt, request = pending.receipt.result(), pending.request
        error = next((t.error for t in pending.tokens if t.finish_reason == "error"), None)
        if error is not None:
            raise GenerationError(f"generation failed: {error}", receipt)
        choices = gather(pending.tokens, request.num_sequences, self._served.info.eos_token_ids)
        return Generation(request.request_id, tuple(choices), receipt)

    def _abandon(self, pending: Sequence[Pending]) -> None:
        """Stop the work that nobody waits for any more."""
        for one in pending:
            if not one.receipt.done():
                self._loop.abort(one.request.request_id)


class NoLedger:
    """For receipts that are handed to the caller and written nowhere."""

    def record(self, *given: object, **options: object) -> None:
        """Write nothing."""


def _as_list(prompts: str | Sequence[Prompt]) -> list[Prompt]:
    return [prompts] if isinstance(prompts, str) else list(prompts)


def _is_conversation(prompt: Prompt | Messages) -> TypeGuard[Messages]:
    return not isinstance(prompt, str) and any(isinstance(one, Mapping) for one in prompt)
