"""HTTP request bodies. What is not listed here is refused by name.

Parameters of the OpenAI API that greenllm does not support are listed too, with the values that
mean "off": any other value is a 400 that names the parameter. Nothing is accepted and ignored,
except `user` and `metadata`, which change nothing by their definition.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from greenllm.core import MOST_DRAFTED, SpeculativeMethod

Positive = Annotated[int, Field(ge=0)]
TokenIds = list[int]


class Body(BaseModel):
    """Strict: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    """What a stream carries beside its tokens."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Speculative(Body):
    """How next tokens are guessed, and how many at a time; without it the server's way.

    It changes what an answer costs, never the answer.
    """

    method: SpeculativeMethod
    num_tokens: Annotated[int, Field(ge=1, le=MOST_DRAFTED)] | None = None


class SamplingBody(Body):
    """Parameters that chat and text completions share; see `core.SamplingParams`."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: Positive | None = None
    max_tokens: Positive | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    speculative: Speculative | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > 16:
            raise ValueError("at most 16 stop strings")
        return stop


class TextPart(Body):
    """A text part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None
    name: str | None = None
    # What an answer's message carries beside its content, when a client sends it back.
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """The message as templates want it: one string."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text, **({"name": self.name} if self.name else {})}


class TextFormat(Body):
    """The only response format there is so far."""

    type: Literal["text"]


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
    functions: None = None
    function_call: None = None
    parallel_tool_calls: None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: str | list[str] | TokenIds | list[TokenIds]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class TokenizeBody(Body):
    """`POST /tokenize`: a prompt, or messages to render first."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: TokenIds


class LoadAdapterBody(Body):
    """`POST /v1/load_lora_adapter`."""

    lora_name: str
    lora_path: Annotated[str, Field(min_length=1)]


class UnloadAdapterBody(Body):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: str
