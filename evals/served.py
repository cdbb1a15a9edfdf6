"""A model behind an OpenAI-compatible server, asked and rated, with what each query cost.

Contract: log probabilities are those of the text's own tokens, which the server's tokenizer makes;
a text that begins does so after the model's first token, or its end token where it has none. Texts
longer than the context are rated in windows that do not overlap, each after one token of the last
(as lm-eval's rolling log likelihoods). What the server does not say it cost is None.

Not covered: servers without `/tokenize` for ratings; streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from evals.basis import Basis, basis_of, sum_of, together
from evals.entry import BenchError
from evals.tasks.base import Answer, Ask, Query, Rate, Rating

_CONNECT_S = 10.0
# What a server says to a query it will never answer; anything else is its own trouble.
_REFUSALS = (400, 413, 422)
# So many are rated with one request, so that none gets too large for a server.
_WINDOWS = 64
# One token is generated with every rating, and it needs a place.
_SPARE = 1


class RefusedError(BenchError):
    """The server does not take this query."""


@dataclass(frozen=True, slots=True)
class QueryCost:
    """What a query cost, None where the server does not say; grams are with the embodied ones."""

    joules: float | None
    active_j: float | None
    grams: float | None
    prompt_tokens: int
    completion_tokens: int
    is_measured: bool | None = None
    method: str | None = None
    basis: Basis = Basis()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Asks a server; made by `connect`. `settings` go with every request."""

    session: aiohttp.ClientSession
    url: str
    model: str
    context: int | None
    first_id: int | None
    has_chat: bool
    settings: Mapping[str, Any] = field(default_factory=dict)

    async def answer(self, query: Query) -> tuple[Answer, QueryCost]:
        """Ask or rate.

        Raises:
            RefusedError: the server does not take it.
            BenchError: the server fails.
        """
        if isinstance(query, Rate):
            return await self._rate(query)
        return await self._ask(query)

    async def _ask(self, query: Ask) -> tuple[Answer, QueryCost]:
        settings = {"model": self.model, "temperature": 0, "max_tokens": query.max_tokens}
        settings |= self.settings
        if self.has_chat:
            body = {**settings, "messages": list(query.turns)}
            found = await self._post("/v1/chat/completions", body)
            return Answer(found["choices"][0]["message"]["content"] or ""), cost_of(found)
        text = "\n".join(turn["content"] for turn in query.turns)
        found = await self._post("/v1/completions", {**settings, "prompt": text})
        return Answer(found["choices"][0]["text"]), cost_of(found)

    async def _rate(self, query: Rate) -> tuple[Answer, QueryCost]:
        windows: list[tuple[int, RatedWindow]] = []
        for place, (context, text) in enumerate(query.pairs):
            before, ids = await self._ids(context, text)
            windows += [(place, window) for window in windows_of(before, ids, self._longest)]
        sums = [0.0] * len(query.pairs)
        counts = [0] * len(query.pairs)
        costs: list[QueryCost] = []
        for start in range(0, len(windows), _WINDOWS):
            part = windows[start : start + _WINDOWS]
            logprobs, cost = await self._logprobs([window for _, window in part])
            costs.append(cost)
            for (place, _), found in zip(part, logprobs, strict=True):
                sums[place] += sum(found)
                counts[place] += len(found)
        ratings = tuple(Rating(*pair) for pair in zip(sums, counts, strict=True))
        return Answer(ratings=ratings), total(costs)

    async def _logprobs(
        self, windows: Sequence[RatedWindow]
    ) -> tuple[list[list[float]], QueryCost]:
        """Log probabilities of each window's ids."""
        body = {
            **self.settings,
            "model": self.model,
            "prompt": [[*window.context, *window.ids] for window in windows],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "echo": True,
        }
        found = await self._post("/v1/completions", body)
        choices = sorted(found["choices"], key=lambda choice: choice["index"])
        logprobs = [
            choice["logprobs"]["token_logprobs"][len(window.context) :][: len(window.ids)]
            for window, choice in zip(windows, choices, strict=True)
        ]
        return logprobs, cost_of(found)

    @property
    def _longest(self) -> int:
        if self.context is None:
            raise BenchError(f"{self.url} does not say how long a context may be (max_model_len)")
        return self.context - _SPARE

    async def _ids(self, context: str, text: str) -> tuple[list[int], list[int]]:
        """Ids of both, as they are together."""
        if self.first_id is None:
            raise BenchError(
                f"{self.url} has no /tokenize, which ratings need; tasks that ask will do"
            )
        whole = await self._tokens(context + text)
        if not context:
            return [self.first_id], whole
        before = await self._tokens(context)
        size = len(before) if whole[: len(before)] == before else _common(whole, before)
        return [self.first_id, *whole[:size]], whole[size:]

    async def _tokens(self, text: str) -> list[int]:
        found = await self._post("/tokenize", {"prompt": text, "add_special_tokens": False})
        ids: list[int] = found["tokens"]
        return ids

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            async with self.session.post(f"{self.url}{path}", json=body) as answer:
                found = await answer.json(content_type=None)
                if answer.status != 200:
                    kind = RefusedError if answer.status in _REFUSALS else BenchError
                    raise kind(f"{path} answered {answer.status}: {_reason(found)}")
                return found
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise BenchError(f"{self.url}{path}: {error or type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class RatedWindow:
    """Ids to rate, after those that are only read."""

    context: tuple[int, ...]
    ids: tuple[int, ...]


def windows_of(before: Sequence[int], ids: Sequence[int], longest: int) -> list[RatedWindow]:
    """Rate every id once: at once where it fits, else window by window.

    Where the context alone is too long its beginning is left out.
    """
    if len(before) + len(ids) <= longest:
        return [RatedWindow(tuple(before), tuple(ids))]
    if len(before) > 1 and len(ids) < longest:
        return [RatedWindow(tuple(before[len(ids) - longest :]), tuple(ids))]
    size = longest - 1
    found = [RatedWindow((before[-1],), tuple(ids[:size]))]
    for start in range(size, len(ids), size):
        part = ids[start : start + size]
        read = ids[max(0, start + len(part) - longest) : start]
        found.append(RatedWindow(tuple(read), tuple(part)))
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def cost_of(body: Mapping[str, Any]) -> QueryCost:
    """What an answer's `usage` says."""
    usage = body.get("usage") or {}
    energy = usage.get("energy") or {}
    grams = energy.get("operational_gco2e")
    embodied = energy.get("embodied_gco2e")
    return QueryCost(
        energy.get("energy_joules"),
        energy.get("active_joules"),
        sum_of((grams, embodied)),
        usage.get("prompt_tokens", 0),
        usage.get("completion_tokens", 0),
        energy.get("measured"),
        energy.get("method"),
        basis_of(energy),
    )


def total(costs: Sequence[QueryCost]) -> QueryCost:
    """Several requests of one query; unknown where one is."""
    return QueryCost(
        sum_of([cost.joules for cost in costs]),
        sum_of([cost.active_j for cost in costs]),
        sum_of([cost.grams for cost in costs]),
        sum(cost.prompt_tokens for cost in costs),
        sum(cost.completion_tokens for cost in costs),
        costs[0].is_measured if costs else None,
        costs[0].method if costs else None,
        together([cost.basis for cost in costs]),
    )


def _reason(found: Any) -> str:
    try:
        return str(found["error"]["message"])
    except (KeyError, TypeError):
        return str(found)[:200]


@asynccontextmanager
async def connect(
    url: str, model: str | None, api_key: str | None, timeout_s: float
) -> AsyncIterator[ServedModel]:
    """Ask a server what it has; `model` None is the first it lists.

    Raises:
        BenchError: it does not answer, or has no such model.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=timeout_s, connect=_CONNECT_S)
    base = url.rstrip("/").removesuffix("/v1")
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector
    ) as session:
        listed = (await _get(session, f"{base}/v1/models"))["data"]
        names = [str(one["id"]) for one in listed]
        if not names:
            raise BenchError(f"{base} lists no model")
        info = await _get(session, f"{base}/tokenizer_info", optional=True) or {}
        draft = ServedModel(
            session, base, model or names[0], listed[0].get("max_model_len"), None,
            bool(info.get("chat_template")) or not info,
        )  # fmt: skip
        yield await _with_first(draft, info.get("bos_token") or info.get("eos_token"))


async def _with_first(model: ServedModel, token: str | None) -> ServedModel:
    if token is None:
        return model
    (first_id, *rest) = await model._tokens(token)
    if rest:
        raise BenchError(f"{model.url}: its first token {token!r} is no single token")
    return replace(model, first_id=first_id)


async def _get(session: aiohttp.ClientSession, url: str, *, optional: bool = False) -> Any:
    try:
        async with session.get(url) as answer:
            if answer.status == 200:
                return await answer.json(content_type=None)
            if optional and answer.status in (404, 405):
                return None
            raise BenchError(f"{url} answered {answer.status}: {(await answer.text())[:200]}")
    except (TimeoutError, aiohttp.ClientError, ValueError) as error:
        raise BenchError(f"{url}: {error or type(error).__name__}") from error
