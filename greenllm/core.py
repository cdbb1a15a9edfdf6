"""The vocabulary: what a request asks, what runs in a step, what comes back and what it cost.

Everything else in greenllm speaks in these values. Only `exits` and the standard library are
imported here.

Not covered: text (token ids only), HTTP, tensors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, Protocol

from greenllm.exits import ExitOffer, ExitResult, ExitState

FinishReason = Literal["stop", "length", "abort", "error"]
Phase = Literal["prefill", "decode", "draft"]
SpeculativeMethod = Literal["off", "auto", "prompt_lookup", "draft_model", "early_exit"]


class GreenllmError(Exception):
    """A failure with a sentence for the user: what, where and what to do."""


class InvalidRequestError(GreenllmError):
    """The request cannot be served as asked.

    `param` names the parameter to blame; `code` says what is wrong in a word, for programs.
    """

    def __init__(self, message: str, param: str | None = None, *, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


TOO_LONG = "context_length_exceeded"


# Below this, dividing logits by the temperature leaves the range of float32.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer has to conform to; a `json_schema` is given as JSON in `source`."""

    kind: Literal["json_schema"]
    source: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when a sequence ends.

    Penalties follow OpenAI (presence, frequency: on generated tokens) and CTRL, arXiv:1909.05858
    (repetition: on all tokens).

    Attributes:
        temperature: Divides the logits; 0 always takes the most probable token. [0 to 2]
        top_p: Only the most probable tokens whose probabilities add up to this. [above 0, to 1]
        top_k: Only so many of the most probable tokens; 0 is all.
        min_p: Only tokens with at least this part of the highest probability. [0 to 1]
        repetition_penalty: Divides the positive logits of tokens seen before, and multiplies the
            negative ones. [above 0, to 100]
        presence_penalty: Taken off the logits of generated tokens. [-2 to 2]
        frequency_penalty: The same for each time that a token was generated. [-2 to 2]
        logit_bias: Added to the logits of single tokens, by id. [-100 to 100]
        seed: Makes the random numbers repeatable; None takes new ones.
        stop: Texts that end the answer and are not part of it; kept as a tuple.
        stop_token_ids: Tokens that end it; kept as a tuple.
        min_tokens: Until so many tokens nothing ends it.
        max_tokens: Tokens of an answer, at most.
        ignore_eos: Go on after the model's end token.
        n: Answers to each prompt. [1 to 128]
        logprobs: How many alternatives are reported beside each token; None is no report.
        prompt_logprobs: The same for the tokens of the prompt.
        grammar: What the answer has to conform to.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: Collection[str] = ()
    stop_token_ids: Collection[int] = ()
    min_tokens: int = 0
    max_tokens: int = 16
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        self._check_types()
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidRequestError(f"{name} must be in [{low}, {high}], got {value}", name)
        if self.repetition_penalty == 0 or self.top_p == 0:
            name = "top_p" if self.top_p == 0 else "repetition_penalty"
            raise InvalidRequestError(f"{name} must be greater than 0", name)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequestError("min_tokens is greater than max_tokens", "min_tokens")
        if any(text == "" for text in self.stop):
            raise InvalidRequestError("stop holds an empty string", "stop")
        if any(not -100 <= bias <= 100 for bias in self.logit_bias.values()):
            raise InvalidRequestError("logit_bias values must be in [-100, 100]", "logit_bias")

    def _check_types(self) -> None:
        """Python callers may give anything, and what a step chokes on ends others' requests too."""
        for name, kind, is_optional in _KIND_OF:
            value = getattr(self, name)
            if not kind.holds(value) and not (is_optional and value is None):
                raise InvalidRequestError(f"{name} must be {kind.words}, got {value!r}", name)
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(self, name) or 0) < 0:
                raise InvalidRequestError(f"{name} must not be negative", name)
        for name in ("stop", "stop_token_ids"):
            # Frozen for callers; what they gave may be a list that they go on changing.
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def takes_the_best(self) -> bool:
        """Whether the token is that with the largest logit, and nothing else is asked."""
        return (
            self.is_greedy
            and not self.has_penalties
            and not self.min_tokens
            and self.logprobs is None
            and self.grammar is None
        )

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on the tokens seen so far or on a bias."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or bool(self.logit_bias)
        )


_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("top_k", 0, 2**31),
    ("min_p", 0, 1),
    ("repetition_penalty", 0, 100),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("min_tokens", 0, 2**31),
    ("max_tokens", 0, 2**31),
    ("n", 1, 128),
)


def _is(kind: type[Any]) -> Callable[[Any], bool]:
    """Python counts True as a number; nobody who gives it means one."""
    return lambda value: isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _all(kind: type[Any]) -> Callable[[Any], bool]:
    def holds(values: Any) -> bool:
        is_many = isinstance(values, Collection) and not isinstance(values, str | bytes)
        return is_many and all(map(_is(kind), values))

    return holds


class _Kind(NamedTuple):
    """What values of a type have to be, as a check and in words."""

    holds: Callable[[Any], bool]
    words: str


# By the type that a field is declared with: a field of another type needs an entry here.
_KINDS: Mapping[str, _Kind] = {
    "bool": _Kind(_is(bool), "true or false"),
    "float": _Kind(_is(Real), "a number"),
    "int": _Kind(_is(Integral), "a whole number"),
    "Collection[str]": _Kind(_all(str), "a tuple or list of texts"),
    "Collection[int]": _Kind(_all(Integral), "a tuple or list of token ids"),
    "Mapping[int, float]": _Kind(
        lambda value: (
            isinstance(value, Mapping) and _all(Integral)(value) and _all(Real)(value.values())
        ),
        "numbers by token ids",
    ),
    "Grammar": _Kind(_is(Grammar), "a Grammar"),
}
_KIND_OF: tuple[tuple[str, _Kind, bool], ...] = tuple(
    (spec.name, _KINDS[declared.removesuffix(" | None")], declared.endswith(" | None"))
    for spec in fields(SamplingParams)
    for declared in (str(spec.type),)
)


MOST_DRAFTED = 16


@dataclass(frozen=True, slots=True)
class Speculation:
    """How a sequence gets draft tokens, which are checked in one step, and how many at most.

    Draft tokens change the cost, never the answer.
    """

    method: SpeculativeMethod
    num_tokens: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.num_tokens <= MOST_DRAFTED:
            raise InvalidRequestError(
                f"num_tokens must be in [1, {MOST_DRAFTED}], got {self.num_tokens}",
                "speculative.num_tokens",
            )


@dataclass(frozen=True, slots=True)
class Approximation:
    """Leave to take a token from the first `exit_layer` layers where they are sure of it.

    Sure is a probability of the likeliest token above `threshold`. `agreement` is the share of
    tokens that were the whole model's when the threshold was calibrated; None if it was not.
    """

    exit_layer: int
    threshold: float
    agreement: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise InvalidRequestError(
                f"threshold must be in (0, 1), got {self.threshold}", "approximate.threshold"
            )


# The owner of what everybody may use. What has no owner (None) is for administrators alone.
EVERYBODY = "*"


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A LoRA adapter as a request uses it: the name for people, the digest for its content.

    Two adapters of one name, one after the other, have different digests. `num_parameters` is what
    each token costs in addition. `owner` is the key that brought it.
    """

    name: str
    digest: str
    num_parameters: int = 0
    owner: str | None = EVERYBODY


@dataclass(frozen=True, slots=True)
class Encode:
    """Work that ends with the prompt, for an embedding or a score: nothing is generated."""

    kind: Literal["embed", "score"] = "embed"


_GENERATE_NOTHING = SamplingParams(temperature=0, max_tokens=0)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request: one or more prompts, each answered `sampling.n` times, or encoded.

    The unit that is charged: all its sequences share one receipt. `key` is the name of the API key,
    never the key; `team`, `user` and `metadata` are labels for the bill. `model` is the official
    name, `asked_model` what the client called the model and its adapter. Without `speculation` the
    server's default holds; with an `approximation` nothing is drafted. Requests share what the
    prefix cache knows only with those of the same `cache_salt`.
    """

    request_id: str
    prompts: tuple[tuple[int, ...], ...]
    work: SamplingParams | Encode
    model: str
    endpoint: str = ""
    key: str | None = None
    adapter: AdapterRef | None = None
    created_s: float = 0.0
    asked_model: str | None = None
    speculation: Speculation | None = None
    approximation: Approximation | None = None
    team: str | None = None
    user: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    cache_salt: str | None = None

    @property
    def sampling(self) -> SamplingParams:
        """How answers are generated; what is only encoded has an answer of no tokens."""
        return _GENERATE_NOTHING if isinstance(self.work, Encode) else self.work

    @property
    def adapter_name(self) -> str | None:
        """Name of its adapter."""
        return None if self.adapter is None else self.adapter.name

    @property
    def asks_for_drafts(self) -> bool:
        """Whether it names a way to get draft tokens."""
        return self.speculation is not None and self.speculation.method != "off"

    @property
    def echoed_model(self) -> str:
        """The model's name in answers: what was asked for."""
        return self.asked_model or self.model

    @property
    def needs_preparation(self) -> bool:
        """Whether its first step would wait for something that `Engine.prepare` does before."""
        asked = (self.speculation, self.approximation, self.sampling.grammar)
        return any(one is not None for one in asked)

    @property
    def prompt_tokens(self) -> int:
        """Tokens in all prompts, each counted once."""
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def num_sequences(self) -> int:
        """Answers asked for."""
        return len(self.prompts) * self.sampling.n


def new_request_id(prefix: str) -> str:
    """A unique id that sorts by time."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what a model thinks before it answers; not part of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A piece of a call that the model asks for: the first of a call names it, all add arguments.

    `number` counts the calls of one answer from 0. `arguments` is JSON, in the order it came.
    """

    number: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


# What an answer is made of; a plain string is a piece of its text.
Event = str | Reasoning | ToolCall


class AnswerSink(Protocol):
    """Turns one sequence's generated ids into events and watches for stop strings."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been completed."""

    def push(self, token_id: int) -> tuple[Event, ...]:
        """Take one id; return what is now certain to be part of the answer."""

    def flush(self) -> tuple[Event, ...]:
        """Return what was held back, at the end of the sequence."""


class MaskProvider(Protocol):
    """Says which tokens keep one sequence's answer within its grammar."""

    def allowed(self, ahead: tuple[int, ...]) -> bytearray:
        """A byte for each logit, 0 where the token may not follow the answer and `ahead`.

        Where `ahead` has left the grammar already, every token may follow: none will be taken.
        """

    def push(self, token_id: int) -> None:
        """Take one id that has become part of the answer."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token and of the most probable ones at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer in the making: its tokens, and the blocks that hold their keys and values.

    `leader` is the sibling with the same prompt that computes it first; `digest` names the last of
    the `num_remembered` blocks that the prefix cache knows. A draft model has seen the first
    `draft_computed` tokens. `exit` is the early exit of an approximate answer, `mask` holds an
    answer to its grammar.
    """

    request: Request
    index: int
    token_ids: list[int]
    prompt_len: int
    seed: int
    eos_token_ids: frozenset[int]
    max_len: int
    text: AnswerSink | None = None
    leader: Sequence | None = None
    block_table: list[int] = field(default_factory=list)
    digest: bytes = b""
    num_remembered: int = 0
    num_computed: int = 0
    num_cached: int | None = None
    queued_s: float = 0.0
    finish_reason: FinishReason | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    output_counts: dict[int, int] = field(default_factory=dict)
    draft_computed: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    exit: ExitState | None = None
    mask: MaskProvider | None = None
    sampling: SamplingParams = field(init=False)

    def __post_init__(self) -> None:
        self.sampling = self.request.sampling

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will be generated."""
        return self.finish_reason is not None

    @property
    def in_decode(self) -> bool:
        """Whether only the newest, generated token is still to be computed."""
        return self.num_generated > 0 and self.num_computed == len(self.token_ids) - 1


def sequences_of(
    request: Request, *, eos_token_ids: frozenset[int], max_len: int
) -> list[Sequence]:
    """Expand a request into its sequences, `n` per prompt; siblings follow the first of them."""
    sequences: list[Sequence] = []
    asked = request.approximation
    for prompt in request.prompts:
        leader: Sequence | None = None
        for choice in range(request.sampling.n):
            seq = Sequence(
                request=request,
                index=len(sequences),
                token_ids=list(prompt),
                prompt_len=len(prompt),
                seed=_choice_seed(request.sampling.seed, choice),
                eos_token_ids=eos_token_ids,
                max_len=min(max_len, len(prompt) + request.sampling.max_tokens),
                leader=leader,
                exit=None if asked is None else ExitState(asked.exit_layer, asked.threshold),
            )
            leader = leader or seq
            sequences.append(seq)
    return sequences


def _choice_seed(seed: int | None, choice: int) -> int:
    """Seed of one choice: the same for the same request, whatever else is in the batch."""
    if seed is None:
        return int.from_bytes(os.urandom(8), "little")
    return (seed * 1_000_003 + choice) & (2**64 - 1)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of one sequence that runs in a step: tokens [start, start + num_tokens).

    The last ones are `draft` tokens. `room` is how many more could be written.
    `exit` is there for the newest token of an approximate answer.
    """

    seq: Sequence
    start: int
    num_tokens: int
    samples: bool
    draft: tuple[int, ...] = ()
    room: int = 0
    exit: ExitOffer | None = None

    @property
    def end(self) -> int:
        """Position after the last token; also the context length the last token sees."""
        return self.start + self.num_tokens

    @property
    def token_ids(self) -> list[int]:
        """The tokens to run."""
        return [*self.seq.token_ids[self.start : self.end], *self.draft]

    def with_draft(self, draft: tuple[int, ...]) -> Chunk:
        """The chunk with draft tokens after its own, in place of its room."""
        return replace(self, num_tokens=self.num_tokens + len(draft), draft=draft, room=0)

    @property
    def may_exit(self) -> bool:
        """Whether the step may end at its exit."""
        return self.exit is not None and self.exit.is_open

    def through_all_layers(self) -> Chunk:
        """The chunk as the layers after its exit have to run it: with what is pending there."""
        if self.exit is None:
            return self
        pending = self.exit.num_pending
        start, num_tokens = self.start - pending, self.num_tokens + pending
        return replace(self, start=start, num_tokens=num_tokens, exit=None, room=0)

    @property
    def phase(self) -> Phase:
        """`decode` once the sequence's prompt has been computed."""
        return "prefill" if self.start < self.seq.prompt_len else "decode"


class DraftPass(NamedTuple):
    """What a drafter computed at once: the chunks, then one token more of each in later steps."""

    chunks: tuple[Chunk, ...]
    num_steps: int = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step runs: one chunk per sequence, decode first.

    Before anything is written for it, draft tokens included, each block of `copies` (from, to) has
    to be copied, in order: a block to copy from may be handed out anew in the same step.
    """

    chunks: tuple[Chunk, ...]
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens in all chunks."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def has_exits(self) -> bool:
        """Whether a chunk may exit, or has to run what is pending from earlier exits."""
        return any(chunk.exit is not None for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the runner returns for a chunk: chosen tokens and the log probabilities asked for.

    Every token but the last is an accepted draft token of the chunk. `prompt` holds one entry for
    each prompt position in the chunk whose predecessor was in view. `exit` is there where the
    chunk might exit. `error` says why there is no token where one was due: its request cannot go
    on.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt: tuple[TokenLogprob, ...] = ()
    exit: ExitResult | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token on its way out, with the `events` that became certain with it.

    The last one of a sequence has a `finish_reason`; with the reason `error` it says in `error`
    what went wrong. A sequence that ends without generating (max_tokens 0, or an abort) sends one
    with no `token_id`. `prompt_logprobs` travels with the first.
    """

    request_id: str
    index: int
    token_id: int | None
    events: tuple[Event, ...] = ()
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    error: str = ""

    @property
    def text(self) -> str:
        """The text among its events."""
        return "".join(event for event in self.events if isinstance(event, str))
