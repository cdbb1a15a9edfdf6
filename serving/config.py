"""Options of the HTTP server, on top of the engine's."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greenllm.config import Options, option
from greenllm.options import EngineConfig


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# What requests that were cut off get for their last words.
ABORT_TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True)
class HttpOptions(Options):
    """Who may ask, how much, and how they are answered."""

    panel = "HTTP"

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
    port: int = option(8000, "Port to listen on.")
    tls_cert: Path | None = option(
        None, "Certificate (PEM, with those that vouch for it) for HTTPS; needs --tls-key."
    )
    tls_key: Path | None = option(None, "Private key (PEM, not encrypted) of --tls-cert.")
    allowed_hosts: tuple[str, ...] = option(
        (),
        "Names that clients may call the server by, comma-separated; default is its own on a"
        " loopback address, else any (*).",
    )
    allowed_origins: tuple[str, ...] = option(
        (), "Sites whose pages may use the server (CORS), as https://example.org; default is none."
    )
    api_keys: tuple[str, ...] = option((), "Keys clients must present, comma-separated.")
    max_connections: int = option(
        512, "Connections at a time; beyond them silent ones are closed, then new ones get 503."
    )
    client_timeout_s: float = option(
        30.0,
        "Seconds that a client gets to send the head of a request, to go on with its body, and to"
        " read on.",
    )
    max_queue: int = option(256, "Requests in flight before new ones get 429.")
    max_body_mb: float = option(8.0, "Largest request body, in megabytes.")
    max_buffered_mb: float = option(
        64.0, "Bodies of all requests in memory at once, in megabytes, before new ones get 503."
    )
    max_file_mb: float = option(512.0, "Largest uploaded file, in megabytes.")
    keep_alive_s: float = option(15.0, "Seconds between keep-alive comments in a silent stream.")
    stream_interval_s: float = option(
        0.025, "Shortest time between two writes to a stream; tokens of one interval go together."
    )
    log: Literal["text", "json", "off"] = option(
        "text", "text, json or off: a line on standard output for each request, without its words."
    )
    drain_timeout_s: float = option(30.0, "Seconds that running requests get after SIGTERM.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.port <= 65535, "port", "must be in [0, 65535]")
        self.require_together("tls_cert", "tls_key")
        self.require_together("tls_key", "tls_cert")
        for origin in self.allowed_origins:
            is_site = origin == "*" or ("://" in origin and not origin.endswith("/"))
            self.require(is_site, "allowed_origins", "are written as https://example.org:8000")
        self.require_above_zero("max_connections", "client_timeout_s")
        self.require_above_zero("max_queue", "max_body_mb", "max_file_mb", "keep_alive_s")
        fits = self.max_buffered_mb >= self.max_body_mb
        self.require(fits, "max_buffered_mb", "must not be less than --max-body-mb")
        for name in ("stream_interval_s", "drain_timeout_s"):
            self.require(getattr(self, name) >= 0, name, "must not be negative")

    @property
    def longest_stop_s(self) -> float:
        """From SIGTERM to the end at most: requests, their last words, then a fine-tuning job."""
        return 2 * self.drain_timeout_s + ABORT_TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions(Options):
    """Several engines behind one address."""

    panel = "Replicas"

    replicas: int | None = option(
        None, "Run that many replicas on Ray Serve behind one address; default is one without Ray."
    )
    min_replicas: int | None = option(
        None, "Stop replicas that are not filled, down to this number; default is --replicas."
    )
    replica_cpus: int | None = option(
        None, "CPUs that belong to one replica, with --replicas; default is 1."
    )
    cluster: str | None = option(
        None, "Address of a running Ray cluster for --replicas; default is a cluster of its own."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("min_replicas", "replica_cpus", "cluster"):
            self.require_together(name, "replicas")
        self.require_above_zero("replicas", "replica_cpus")
        least, most = self.min_replicas, self.replicas
        within = least is None or most is None or 0 < least <= most
        self.require(within, "min_replicas", "must be in [1, --replicas]")
        self.require(
            "://" not in (self.cluster or ""),
            "cluster",
            "is HOST:PORT or auto: the command runs on a machine of the cluster",
        )

    @property
    def cpus_per_replica(self) -> int:
        """CPUs that belong to one replica."""
        return self.replica_cpus or 1


@dataclass(frozen=True, kw_only=True)
class ServeConfig(EngineConfig, HttpOptions, ReplicaOptions):
    """Everything `greenllm serve` can be told."""

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = self.replicas is None or ":" not in self.device
        self.require(alone, "device", "is cpu, cuda or auto with --replicas: Ray says which GPU")
