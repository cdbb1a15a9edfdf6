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
import gc
import os
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from greenllm.client import EngineClient
from greenllm.config import ConfigError, load
from greenllm.core import InvalidRequestError, SamplingParams, Token
from greenllm.generation import Generation, Pieces, Stream, first_text
from greenllm.options import EngineConfig
from greenllm.places import places_of
from greenllm.prompts import Encoder, Messages, Prompt, as_list

if TYPE_CHECKING:
    from greenllm.model.adapters import AdapterInfo


class LLM:
    """A loaded model; safe to use from several threads.

    Args:
        model: `bundled`, a model folder or a hub id.
        record: whether receipts go to the ledger in `data_dir`, as a server's do.
        options: the engine's options by name, as in `greenllm serve --help` without HTTP's; one
            that is None keeps its default. Of the environment only the folders are read.

    Raises:
        GreenllmError: an option is wrong (the message spells it as the command line does), or the
            model cannot be loaded.
    """

    def __init__(
        self, model: str | Path = "bundled", *, record: bool = False, **options: Any
    ) -> None:
        from greenllm.energy.meters.choose import open_meter
        from greenllm.energy.meters.machine_roster import join_roster
        from greenllm.energy.meters.scope import Scope
        from greenllm.energy.session import open_ledger

        # As the server does; torch reads it when it is loaded, so it has no effect after that.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from greenllm.load import load_engine

        if not isinstance(model, str | Path):
            raise ConfigError(
                f"model must be bundled, a folder or a hub id, not {model!r}", "model"
            )
        places = places_of(EngineConfig)
        config = load(EngineConfig, flags={"model": model, **options}, environment=places)
        roster = join_roster(config.roster)
        scope = Scope(devices=config.gpus, roster=roster)
        self._ledger, session_id = None, ""
        with ExitStack() as undo:
            if roster is not None:
                undo.callback(roster.leave)
            meter, first = open_meter(config, scope)
            self._served = load_engine(config, meter, first)
            if record:
                self._ledger, session_id = open_ledger(config, meter, self._served.info.parameters)
            self._at_close = undo.pop_all()
        self._engine = self._served.engine
        self._encoder = Encoder(self._served.tokenizer, self._served.info.context_length)
        self._engine.account.start_serving()
        recorder = self._ledger or NoLedger()
        self._client = EngineClient(self._engine, self._served.name, recorder, session_id)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is in flight, close the books and stop the engine. Twice does no harm.

        Answers that are unfinished have the outcome `aborted` in their receipts.
        """
        self._client.close()
        if self._ledger is not None:
            self._ledger.close()
        self._at_close.close()
        # Loading has frozen what there was; frozen cycles, such as the engine's, are never freed.
        gc.unfreeze()

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

        The folder has to be in `adapters` of `data_dir`, or in one of the option `adapter_dirs`.

        Raises:
            GreenllmError: it does not fit the model, the name is taken, or the folder is elsewhere.
        """
        if not isinstance(folder, str | Path):
            raise InvalidRequestError(f"folder must be a path, not {folder!r:.80}", "folder")
        return self._engine.adapters.add(name, Path(folder))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that use it finish.

        Raises:
            GreenllmError: there is none of this name.
        """
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

        One prompt that is a text gets one answer, a list gets a list. `adapter` is one for all
        prompts, or one (or None) for each. Without `sampling` it is `SamplingParams()`: drawn at
        temperature 1, at most 16 tokens.

        Raises:
            InvalidRequestError: a prompt or a parameter cannot be served.
            GreenllmError: there is no such adapter, or the model has been closed.
            GenerationError: the engine failed on one of them.
        """
        queries = self._encoder.queries(as_list(prompts), sampling, adapter)
        answers = self._client.answers(self._client.submit(queries))
        return answers[0] if isinstance(prompts, str) else answers

    def chat(
        self,
        messages: str | Messages,
        sampling: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Generation:
        """Answer a conversation: dictionaries with `role` and `content`, or what the user says.

        Messages are those of HTTP: the roles `system`, `developer`, `user` and `assistant`, and a
        content that is a text or a list of text parts. Without `sampling` it is drawn at
        temperature 1, and may fill the context.

        Raises:
            InvalidRequestError: a message or a parameter cannot be served.
            GreenllmError: there is no such adapter, or the model has been closed.
            GenerationError: the engine failed on it.
        """
        queries = self._encoder.chat(messages, sampling, adapter)
        return self._client.answers(self._client.submit(queries))[0]

    def stream(
        self,
        prompt: Prompt | Messages,
        sampling: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Stream:
        """The same for one prompt or conversation, piece by piece; see `Stream`.

        A text is a prompt that is continued, as in `generate`; messages are answered as in `chat`.

        Raises:
            InvalidRequestError: the prompt or a parameter cannot be served.
            GreenllmError: there is no such adapter, or the model has been closed.
        """
        pieces, client = Pieces(), self._client
        reader = weakref.ref(pieces)

        def feed(token: Token | None) -> None:
            if (there := reader()) is not None:
                there.put(token)
            else:
                client.abandon(pending)

        pending = client.submit(self._encoder.queries([prompt], sampling, adapter), feed)
        return Stream(pieces, lambda: client.answers(pending)[0], lambda: client.abandon(pending))

    @overload
    async def agenerate(  # type: ignore[overload-overlap]  # as in `generate`
        self, prompts: str, sampling: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Generation: ...

    @overload
    async def agenerate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[Generation]: ...

    async def agenerate(
        self,
        prompts: str | Sequence[Prompt],
        sampling: SamplingParams | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> Generation | list[Generation]:
        """`generate` for asyncio; a task that is cancelled stops the work."""
        queries = self._encoder.queries(as_list(prompts), sampling, adapter)
        answers = await self._client.answers_in_task(queries)
        return answers[0] if isinstance(prompts, str) else answers

    async def achat(
        self,
        messages: str | Messages,
        sampling: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Generation:
        """`chat` for asyncio."""
        queries = self._encoder.chat(messages, sampling, adapter)
        return (await self._client.answers_in_task(queries))[0]

    async def astream(
        self,
        prompt: Prompt | Messages,
        sampling: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> AsyncIterator[str | Generation]:
        """`stream` for asyncio: pieces of text, and at last the whole `Generation`."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Token | None]()

        def feed(token: Token | None) -> None:
            # The caller's loop may have been closed before the engine heard of it.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(pieces.put_nowait, token)

        queries = self._encoder.queries([prompt], sampling, adapter)
        pending = await self._client.submit_in_task(queries, feed)
        try:
            while (token := await pieces.get()) is not None:
                if text := first_text(token):
                    yield text
            yield self._client.answer(pending[0])
        finally:
            self._client.abandon(pending)


class NoLedger:
    """For receipts that are handed to the caller and written nowhere."""

    def record(self, *given: object, **options: object) -> None:
        """Write nothing."""
