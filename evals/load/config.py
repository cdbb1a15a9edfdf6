"""Options of `greenllm bench serve`, each declared once; refused if they cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from greenllm.config import ConfigError, Options, option

ABOVE_ZERO = (
    *("requests", "duration_s", "prompt_tokens", "max_tokens", "limit", "max_context"),
    *("rate_scale", "vocabulary", "timeout_s"),
)


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Options):
    """What to send to whom."""

    url: str = option("http://127.0.0.1:8000", "Server; default is this machine's.")
    model: str | None = option(None, "Model; default is the first that the server lists.")
    concurrency: str = option("1,8,32", "Closed loop: requests in flight, one load per number.")
    requests: int = option(64, "Requests per load.")
    duration_s: float | None = option(None, "Seconds per load, instead of --requests.")
    prompt_tokens: int = option(32, "Length of prompts.")
    max_tokens: int = option(64, "Length of answers.")
    trace: Path | None = option(None, "Open loop: CSV of TIMESTAMP,ContextTokens,GeneratedTokens.")
    limit: int | None = option(None, "Only the first arrivals of the trace.")
    max_context: int | None = option(None, "Shrink the trace's lengths so that the longest fits.")
    rate_scale: float = option(1.0, "Send the trace this many times faster.")
    chat: bool = option(False, "Send chats of random words instead of token ids.")
    stop_at_eos: bool = option(False, "Let answers end early; otherwise that is a failure.")
    vocabulary: int = option(1024, "Prompt ids are drawn below this.")
    seed: int = option(0, "Seed of the prompts.")
    warm_up: int = option(4, "Requests sent first and not counted.")
    pid: int | None = option(
        None, "The server's process; default is the one behind its port on this machine."
    )
    api_key: str | None = option(None, "Sent as bearer token.")
    timeout_s: float = option(300.0, "Longest wait for an answer.")
    json: Path | None = option(None, "Write everything as JSON.")

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"not a URL of a server: {self.url}; {_url_hint(self.url)}", "url")
        self.require_above_zero(*ABOVE_ZERO)
        self.levels()

    def levels(self) -> list[int]:
        """The concurrencies.

        Raises:
            ConfigError: they are not whole numbers above zero.
        """
        return parse_levels(self.concurrency)

    @property
    def base_url(self) -> str:
        """Where the server is, without a path."""
        return self.url.rstrip("/").removesuffix("/v1")


def _url_hint(text: str) -> str:
    """What to write instead; an address without its scheme is recognised."""
    meant = urlsplit(f"http://{text}")
    try:
        is_address = meant.port is not None or meant.hostname == "localhost"
    except ValueError:  # what stands for the port is none
        is_address = False
    is_address = is_address and "://" not in text
    return f"did you mean http://{text}" if is_address else "it begins with http:// or https://"


def parse_levels(text: str) -> list[int]:
    """Concurrencies, from `1,8,32`.

    Raises:
        ConfigError: they are not whole numbers above zero.
    """
    try:
        levels = [int(word) for word in text.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1:
        raise ConfigError(f"--concurrency takes numbers like 1,8,32, not {text!r}", "concurrency")
    return levels
