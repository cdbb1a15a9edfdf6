"""What Python callers ask for, as queries: prompts and conversations in token ids.

Contract: what is no prompt, no message, no name or no `SamplingParams` is refused in a sentence
before anything is submitted, as a mistake of its caller: in a step it would end others' requests.
Not covered: what the model refuses (see `engine.admission`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from greenllm.client import Query
from greenllm.core import InvalidRequestError, SamplingParams
from greenllm.messages import conversation

if TYPE_CHECKING:
    from greenllm.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
Adapters = str | Sequence[str | None] | None


def as_list(prompts: str | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several.

    Raises:
        InvalidRequestError: they are neither.
    """
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, Mapping):
        raise InvalidRequestError(
            f"prompts must be a text or a list of prompts, not {prompts!r:.80}", "prompt"
        )
    return list(prompts)


@dataclass(frozen=True, slots=True)
class Encoder:
    """Makes queries for a model with this tokenizer and context."""

    tokenizer: Tokenizer
    context_length: int

    def queries(
        self,
        prompts: Iterable[Prompt | Messages],
        sampling: SamplingParams | None,
        adapter: Adapters,
    ) -> list[Query]:
        """A query for each prompt, a conversation among them or not.

        Raises:
            InvalidRequestError: something is not what it has to be.
        """
        _check_sampling(sampling)
        found = [self._query(prompt, sampling) for prompt in prompts]
        return _with_adapters(found, adapter)

    def chat(
        self, messages: str | Messages, sampling: SamplingParams | None, adapter: Adapters
    ) -> list[Query]:
        """The query for a conversation; see `queries`."""
        _check_sampling(sampling)
        return _with_adapters([self._answer_to(messages, sampling)], adapter)

    def _query(self, prompt: Prompt | Messages, sampling: SamplingParams | None) -> Query:
        if _is_conversation(prompt):
            return self._answer_to(prompt, sampling)
        prompt = cast(Prompt, prompt)
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else _ids(prompt)
        return Query(tuple(ids), sampling or SamplingParams())

    def _answer_to(self, messages: str | Messages, sampling: SamplingParams | None) -> Query:
        """Without `sampling` a conversation's answer has the rest of the context."""
        ids = self.tokenizer.chat_ids(conversation(messages), add_generation_prompt=True)
        room = max(1, self.context_length - len(ids))
        return Query(tuple(ids), sampling or SamplingParams(max_tokens=room))


def _check_sampling(sampling: object) -> None:
    if not isinstance(sampling, SamplingParams | None):
        raise InvalidRequestError(
            f"sampling must be SamplingParams, not {sampling!r:.80}", "sampling"
        )


def _with_adapters(queries: list[Query], adapter: Adapters) -> list[Query]:
    """The queries, each with its adapter's name."""
    is_one = adapter is None or isinstance(adapter, str)
    names = [adapter] * len(queries) if is_one else adapter
    if not isinstance(names, list | tuple) or not all(isinstance(n, str | None) for n in names):
        raise InvalidRequestError(
            f"adapter must be a name, or a list with a name or None for each prompt,"
            f" not {adapter!r:.80}",
            "adapter",
        )
    if len(names) != len(queries):
        raise InvalidRequestError(f"{len(queries)} prompts, but {len(names)} adapters", "adapter")
    return [replace(query, adapter=name) for query, name in zip(queries, names, strict=True)]


def _ids(prompt: Sequence[int]) -> list[int]:
    """Token ids of any whole-number type, which True is none of."""
    try:
        ids = [index(token_id) for token_id in prompt if not isinstance(token_id, bool)]
        if len(ids) == len(prompt):
            return ids
    except TypeError:
        pass
    raise InvalidRequestError(
        "a prompt must be a text, token ids, or messages with role and content,"
        f" not {prompt!r:.80}",
        "prompt",
    )


def _is_conversation(prompt: Prompt | Messages) -> TypeGuard[Messages]:
    return isinstance(prompt, Iterable) and any(isinstance(one, Mapping) for one in prompt)
