"""The two forms of an answer, a chat message and text: each as a whole and in chunks.

Contract: the choices of a whole answer are made one at a time, while it is encoded: with their log
probabilities they are a hundred times as large as objects as they are as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import starmap
from typing import Any, Protocol

from pydantic_core import to_json

from greenllm.choices import Choice, is_hidden
from greenllm.core import Event, Reasoning, Request, Token, TokenLogprob, ToolCall
from greenllm.energy.receipt import Receipt
from greenllm.served import Served
from serving.openai.logprobs import chat_logprobs, shown_length, text_logprobs
from serving.receipts import energy_object

# What telling a token costs, beside reading a body.
BYTES_PER_TOKEN = 16


class Form(Protocol):
    """How one request's answer looks on the wire."""

    request: Request
    chunk_object: str

    @property
    def hidden_ids(self) -> frozenset[int]:
        """Ids that end an answer without being part of it."""

    def opening(self) -> list[dict[str, Any]]:
        """Choices of the chunks that a stream begins with."""

    def chunk(self, token: Token) -> dict[str, Any] | None:
        """The choice of one token's chunk; None when there is nothing to tell yet."""

    def answer(self, choices: Sequence[Choice], receipt: Receipt) -> dict[str, Any]:
        """The body of an answer that is not streamed, for `encoded`."""


class ChatForm:
    """`/v1/chat/completions`: the role first, then content, then the reason it ended."""

    chunk_object = "chat.completion.chunk"

    def __init__(self, request: Request, served: Served) -> None:
        self.request = request
        self.hidden_ids = served.info.eos_token_ids | frozenset(request.sampling.stop_token_ids)
        self._tokenizer = served.tokenizer

    def opening(self) -> list[dict[str, Any]]:
        """One choice per answer, with the role."""
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index in range(self.request.num_sequences)
        ]

    def chunk(self, token: Token) -> dict[str, Any] | None:
        """The choice of one token's chunk; see `Form`."""
        logprobs = None
        if token.logprob is not None and not is_hidden(token, self.hidden_ids):
            logprobs = chat_logprobs([token.logprob], self._tokenizer)
        if not (token.events or logprobs or token.finish_reason):
            return None
        return {
            "index": token.index,
            "delta": _delta(token.events),
            "logprobs": logprobs,
            "finish_reason": token.finish_reason,
        }

    def answer(self, choices: Sequence[Choice], receipt: Receipt) -> dict[str, Any]:
        """The body of an answer; see `Form`."""
        request = self.request
        body = {
            **head(request, "chat.completion"),
            "choices": starmap(self._choice, enumerate(choices)),
            "usage": usage(receipt),
            **mark(request),
        }
        if request.sampling.prompt_logprobs is not None:
            scores = _prompt_entries(choices[0])
            body["prompt_logprobs"] = text_logprobs(scores, request.prompts[0][0], self._tokenizer)
        return body

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        wants_logprobs = self.request.sampling.logprobs is not None
        return {
            "index": index,
            "message": _message(choice),
            "logprobs": chat_logprobs(choice.logprobs, self._tokenizer) if wants_logprobs else None,
            "finish_reason": choice.finish_reason,
        }


class TextForm:
    """`/v1/completions`: text, after the prompt where it is echoed. Every token is scored."""

    chunk_object = "text_completion"
    hidden_ids: frozenset[int] = frozenset()

    def __init__(self, request: Request, served: Served, *, echo: bool) -> None:
        self.request = request
        self._tokenizer = served.tokenizer
        self._echo = echo
        self._offsets = [0] * request.num_sequences
        self._scores_prompt = echo and request.sampling.prompt_logprobs is not None
        self._begun: set[int] = set()

    def opening(self) -> list[dict[str, Any]]:
        """Echoed prompts; those that are scored come with the first token."""
        if not self._echo or self._scores_prompt:
            return []
        return [
            {"index": i, "text": self._prompt_text(i), "logprobs": None, "finish_reason": None}
            for i in range(self.request.num_sequences)
        ]

    def chunk(self, token: Token) -> dict[str, Any] | None:
        """The choice of one token's chunk; see `Form`."""
        scored: list[TokenLogprob | None] = []
        text = token.text
        if self._scores_prompt and token.index not in self._begun:
            scored += [None, *token.prompt_logprobs]
            text = self._prompt_text(token.index) + text
        self._begun.add(token.index)
        if token.logprob is not None:
            scored.append(token.logprob)
        if not (text or scored or token.finish_reason):
            return None
        return {
            "index": token.index,
            "text": text,
            "logprobs": self._chunk_logprobs(token.index, scored),
            "finish_reason": token.finish_reason,
        }

    def answer(self, choices: Sequence[Choice], receipt: Receipt) -> dict[str, Any]:
        """The body of an answer; see `Form`."""
        return {
            **head(self.request, self.chunk_object),
            "choices": starmap(self._choice, enumerate(choices)),
            "usage": usage(receipt),
            **mark(self.request),
        }

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        sampling, first_id = self.request.sampling, self._prompt(index)[0]
        prompt_entries = _prompt_entries(choice)
        logprobs, scores = None, {}
        if sampling.logprobs is not None:
            scored = [*(prompt_entries if self._echo else ()), *choice.logprobs]
            logprobs = text_logprobs(scored, first_id, self._tokenizer)
        if sampling.prompt_logprobs is not None and not self._echo:
            found = text_logprobs(prompt_entries, first_id, self._tokenizer)
            scores = {"prompt_logprobs": found}
        return {
            "index": index,
            "text": (self._prompt_text(index) if self._echo else "") + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            **scores,
        }

    def _chunk_logprobs(
        self, index: int, scored: Sequence[TokenLogprob | None]
    ) -> dict[str, Any] | None:
        if self.request.sampling.logprobs is None:
            return None
        first_id = self._prompt(index)[0]
        found = text_logprobs(scored, first_id, self._tokenizer, offset=self._offsets[index])
        ids = [first_id if entry is None else entry.token_id for entry in scored]
        self._offsets[index] += sum(shown_length(one, self._tokenizer) for one in ids)
        return found

    def _prompt(self, index: int) -> tuple[int, ...]:
        return self.request.prompts[index // self.request.sampling.n]

    def _prompt_text(self, index: int) -> str:
        return self._tokenizer.decode(self._prompt(index))


def encoded(body: Mapping[str, Any]) -> bytes:
    """JSON of a body; an iterator becomes a list, item by item.

    Nothing else runs while a value is encoded, so that a long answer has to be encoded in pieces.
    """
    parts = [_json(name) + b":" + _value(value) for name, value in body.items()]
    return b"{" + b",".join(parts) + b"}"


def _value(value: Any) -> bytes:
    listed = isinstance(value, Iterator)
    return b"[" + b",".join(map(_json, value)) + b"]" if listed else _json(value)


def _json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null")


def _delta(events: Sequence[Event]) -> dict[str, Any]:
    """What a chunk adds to the message, under the keys that clients of OpenAI and vLLM read."""
    delta: dict[str, Any] = {}
    for event in events:
        if isinstance(event, str):
            delta["content"] = delta.get("content", "") + event
        elif isinstance(event, Reasoning):
            delta["reasoning_content"] = delta.get("reasoning_content", "") + event.text
        else:
            delta.setdefault("tool_calls", []).append(_call(event, index=event.number))
    return delta


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [_call(call) for call in choice.tool_calls]
    return message


def _call(call: ToolCall, **place: int) -> dict[str, Any]:
    """A call, or a piece of one at its place: only the first piece says whose it is."""
    named = {} if call.name is None else {"id": call.call_id, "type": "function"}
    function = {} if call.name is None else {"name": call.name}
    return {**place, **named, "function": {**function, "arguments": call.arguments}}


def head(request: Request, object_name: str) -> dict[str, Any]:
    """The fields that every answer and every chunk begin with."""
    return {
        "id": request.request_id,
        "object": object_name,
        "created": int(request.created_s),
        "model": request.echoed_model,
    }


def mark(request: Request) -> dict[str, Any]:
    """The field that marks an approximate answer."""
    return {} if request.approximation is None else {"approximate": True}


def usage(receipt: Receipt) -> dict[str, Any]:
    """OpenAI's usage object, with the energy."""
    return {
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.completion_tokens,
        "total_tokens": receipt.prompt_tokens + receipt.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": receipt.cached_tokens},
        "energy": energy_object(receipt),
    }


def _prompt_entries(choice: Choice) -> list[TokenLogprob | None]:
    """Scores of every prompt token; the first has nothing before it."""
    return [None, *choice.prompt_logprobs]
