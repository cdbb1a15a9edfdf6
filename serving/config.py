"""Options of the HTTP server, on top of the engine's."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greenllm.config import Options, option
from greenllm.options import DataOptions, EngineConfig
from serving.jobs.quota import Quota


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
    max_connections: int = option(
        512, "Connections at a time; beyond them silent ones are closed, then new ones get 503."
    )
    client_timeout_s: float = option(
        30.0,
        "Seconds that a client gets to send the head of a request, to go on with its body, and to"
        " read on.",
    )
    max_queue: int = option(256, "Requests in flight before new ones get 429.")
    max_queue_tokens: int = option(
        4_000_000, "Tokens that the requests in flight may come to before new ones get 429."
    )
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
    step_timeout_s: float = option(
        1200.0, "Seconds after which a step that does not end stops the server; 0 for never."
    )
    min_free_memory_mb: float = option(
        256.0, "Megabytes of free memory below which new requests get 503; 0 for never."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.port <= 65535, "port", "must be in [0, 65535]")
        self.require_together("tls_cert", "tls_key")
        self.require_together("tls_key", "tls_cert")
        for origin in self.allowed_origins:
            is_site = origin == "*" or ("://" in origin and not origin.endswith("/"))
            self.require(is_site, "allowed_origins", "are written as https://example.org:8000")
        self.require_above_zero("max_connections", "client_timeout_s")
        self.require_above_zero("max_queue", "max_queue_tokens", "max_body_mb", "max_file_mb")
        self.require_above_zero("keep_alive_s")
        fits = self.max_buffered_mb >= self.max_body_mb
        self.require(fits, "max_buffered_mb", "must not be less than --max-body-mb")
        for name in (
            "stream_interval_s",
            "drain_timeout_s",
            "step_timeout_s",
            "min_free_memory_mb",
        ):
            self.require(getattr(self, name) >= 0, name, "must not be negative")

    @property
    def longest_stop_s(self) -> float:
        """From SIGTERM to the end at most: requests, their last words, then a fine-tuning job."""
        return 2 * self.drain_timeout_s + ABORT_TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class KeyOptions(DataOptions):
    """Who may ask, and what each key may keep here."""

    panel = "Keys and quotas"

    api_keys: tuple[str, ...] | None = option(
        None,
        "Keys with every scope but admin, comma-separated; as a flag, other users of this machine"
        " see them.",
    )
    keys_file: Path | None = option(
        None,
        "File that `greenllm keys` writes; default is DATA_DIR/keys.json where there is one.",
    )
    share_prefix_cache: bool = option(
        False,
        "Let keys share the prefix cache: cheaper where prompts begin alike, but each can then find"
        " out what others have asked.",
    )
    max_files: int = option(200, "Uploaded files that each key may keep.")
    max_stored_mb: float = option(
        4096.0, "Megabytes of uploaded files, and of what its waiting jobs copied, for each key."
    )
    max_job_hours: float = option(24.0, "Hours after which a fine-tuning job is ended.")
    max_open_jobs: int = option(16, "Fine-tuning jobs of each key that wait, run or are paused.")

    def __post_init__(self) -> None:
        super().__post_init__()
        keys = self.api_keys
        self.require(
            keys is None or bool(keys),
            "api_keys",
            "has no key in it; leave it out for an open server",
        )
        self.require_above_zero("max_files", "max_stored_mb", "max_open_jobs", "max_job_hours")

    @property
    def quota(self) -> Quota:
        """What each key may keep."""
        return Quota(self.max_files, round(self.max_stored_mb * 1e6), self.max_open_jobs)

    @property
    def keys_path(self) -> Path | None:
        """The keys file, where keys come from one."""
        usual = self.data_path / "keys.json"
        return self.keys_file or (usual if usual.exists() else None)

    @property
    def needs_key(self) -> bool:
        """Whether callers need a key."""
        return bool(self.api_keys) or self.keys_path is not None


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
class ServeConfig(EngineConfig, HttpOptions, KeyOptions, ReplicaOptions):
    """Everything `greenllm serve` can be told."""

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = self.replicas is None or ":" not in self.device
        self.require(alone, "device", "is cpu, cuda or auto with --replicas: Ray says which GPU")
