"""HTTP request bodies. What is not listed here is refused by name.

Every list, text and map has a bound from `limits`, and validation of a list ends with the first
item that is wrong: what a wrong body costs does not grow with it.

Parameters of the OpenAI API that greenllm does not support are listed too, with the values that
mean "off" (see `off`): any other value is a 400 that says so by name. Nothing is accepted and
ignored, except `user` and `metadata`, which change no answer: they are labels on the receipt.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from greenllm.core import MOST_DRAFTED, SpeculativeMethod
from greenllm.messages import Role, plain, refusal_of_parts, refusal_of_role
from serving.errors import UNSUPPORTED
from serving.limits import (
    MOST_KEYS,
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_PROMPTS,
    MOST_STOP_IDS,
    MOST_STOPS,
)
from serving.openai.bounded import (
    Biases,
    Labels,
    Name,
    Nothing,
    Path,
    Positive,
    Schema,
    Seed,
    Stop,
    Text,
    TokenIds,
    User,
    items,
    refuse_many,
)


def off(*allowed: Any) -> BeforeValidator:
    """Marks a parameter that is not supported, beyond null and the values that mean "off"."""
    words = " or ".join(json.dumps(value) for value in allowed if value != [])
    only = f", only {words}" if words else ""

    def check(value: Any) -> Any:
        if value is not None and value not in allowed:
            raise PydanticCustomError(UNSUPPORTED, "is not supported{only}", {"only": only})
        return value

    return BeforeValidator(check)


def _only_text(content: Any) -> Any:
    return _unless(refusal_of_parts(content), content)


def _no_tools(role: Any) -> Any:
    return _unless(refusal_of_role(role), role)


def _unless(refusal: str | None, value: Any) -> Any:
    if refusal is not None:
        raise PydanticCustomError(UNSUPPORTED, "{refusal}", {"refusal": refusal})
    return value


class Body(BaseModel):
    """Strict: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: Any) -> Any:
        return refuse_many(value, MOST_KEYS)


class StreamOptions(Body):
    """What a stream carries beside its tokens."""

    include_usage: bool = False
    include_obfuscation: Annotated[Literal[False], off(False)] = False


class Speculative(Body):
    """How draft tokens are made, and how many by a method that is named; default is the server's.

    Speculation changes what an answer costs, never the answer.
    """

    method: SpeculativeMethod
    num_tokens: Annotated[int, Field(ge=1, le=MOST_DRAFTED)] | None = None


class Approximate(Body):
    """Tokens may come from an early exit where it is confident: other answers, for fewer joules.

    Give either the share of tokens that have to equal the whole model's, or how likely the exit's
    best token has to be.
    """

    agreement: float | None = None
    threshold: float | None = None


class SamplingBody(Body):
    """Parameters that chat and text completions share; see `core.SamplingParams`."""

    endpoint: ClassVar[str]

    model: Name
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Biases | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], items(MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[int], items(MOST_STOP_IDS)] | None = None
    min_tokens: Positive | None = None
    max_tokens: Positive | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    speculative: Speculative | None = None
    approximate: Approximate | None = None
    user: User | None = None
    metadata: Labels | None = None


class TextPart(Body):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One message of a conversation."""

    role: Annotated[Role, BeforeValidator(_no_tools)]
    content: Annotated[
        Text | Annotated[list[TextPart], items(MOST_PARTS)] | None, BeforeValidator(_only_text)
    ]
    name: Name | None = None
    # What an answer's message carries beside its content, when a client sends it back.
    refusal: Annotated[None, off()] = None
    audio: Annotated[None, off()] = None
    annotations: Annotated[Nothing | None, off([])] = None
    function_call: Annotated[None, off()] = None
    tool_calls: Annotated[Nothing | None, off([])] = None

    def plain(self) -> dict[str, str]:
        """The message as templates want it: one string."""
        content = self.content
        parts = [part.text for part in content] if isinstance(content, list) else content
        return plain(self.role, parts, self.name)


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema; the answer is always held to it, `strict` or not."""

    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
    description: Text | None = None
    definition: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(Body):
    """JSON that is an instance of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    endpoint = "/v1/chat/completions"
    messages: Annotated[list[Message], items(MOST_MESSAGES, least=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[Nothing | None, off([])] = None
    tool_choice: Annotated[Literal["none"] | None, off("none")] = None
    store: Annotated[Literal[False] | None, off(False)] = None
    service_tier: Annotated[Literal["auto", "default"] | None, off("auto", "default")] = None
    modalities: Annotated[Annotated[list[Literal["text"]], items(1)] | None, off(["text"], [])] = (
        None
    )
    functions: Annotated[None, off()] = None
    function_call: Annotated[None, off()] = None
    parallel_tool_calls: Annotated[None, off()] = None
    audio: Annotated[None, off()] = None
    prediction: Annotated[None, off()] = None
    reasoning_effort: Annotated[None, off()] = None


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    endpoint = "/v1/completions"
    prompt: (
        Text
        | Annotated[list[Text], items(MOST_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], items(MOST_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[Literal[1] | None, off(1)] = None
    suffix: Annotated[None, off()] = None


class TokenizeBody(Body):
    """`POST /tokenize`: a prompt, or messages to render first."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], items(MOST_MESSAGES)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: Name | None = None
    tokens: TokenIds


class LoadAdapterBody(Body):
    """`POST /v1/load_lora_adapter`."""

    lora_name: Name
    lora_path: Path


class UnloadAdapterBody(Body):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: Name
