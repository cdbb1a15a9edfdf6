"""The port, taken before anything slow; and uvicorn, told what to do when it starts and stops."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from greenllm.core import GreenllmError
from serving.config import ABORT_TIMEOUT_S, HttpOptions
from serving.connections import bounded, end_overdue

log = logging.getLogger(__name__)
# Descriptors that are kept for everything but connections: files, the ledger, adapters.
RESERVED_DESCRIPTORS = 128
_TICKS_PER_S = 10  # uvicorn's


class StartError(GreenllmError):
    """The server cannot start; the message says why."""


def take_port(host: str, port: int) -> socket.socket:
    """Bind the listening socket.

    Raises:
        StartError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise StartError(f"{reason}; choose another --port") from error
    listener.listen(2048)
    return listener


def check_tls(options: HttpOptions) -> None:
    """Look at certificate and key before anything slow begins.

    Raises:
        StartError: they cannot be used.
    """
    if options.tls_cert is None or options.tls_key is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls_cert, options.tls_key, password=lambda: "")
    except (OSError, ValueError) as error:
        given = f"--tls-cert {options.tls_cert} with --tls-key {options.tls_key}"
        raise StartError(
            f"cannot use {given}: {getattr(error, 'reason', None) or error}"
        ) from error


def num_that_fit(wanted: int) -> int:
    """How many connections there can be, after asking for as many descriptors as are needed."""
    if sys.platform == "win32":  # which has no such limit
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_DESCRIPTORS
    if soft < needed:
        soft = min(needed, hard) if hard != resource.RLIM_INFINITY else needed
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fitting = max(1, min(wanted, soft - RESERVED_DESCRIPTORS))
    if fitting < wanted:
        log.warning(
            "%d connections at a time, not %d: this process may open %d files (ulimit -n)",
            fitting,
            wanted,
            soft,
        )
    return fitting


class FrontDoor(uvicorn.Server):
    """Tells when it is up, and when running requests have had their time after a signal."""

    def __init__(
        self,
        app: ASGIApp,
        options: HttpOptions,
        *,
        on_ready: Callable[[], None],
        on_signal: Callable[[], None],
        on_drained: Callable[[], None],
    ) -> None:
        cut_off_s = round(options.drain_timeout_s) + ABORT_TIMEOUT_S
        fitting = replace(options, max_connections=num_that_fit(options.max_connections))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=cut_off_s,
            http=bounded(fitting),
            ws="none",
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
        )
        super().__init__(config)
        self._on_ready = on_ready
        self._drain_timeout_s = options.drain_timeout_s
        self._on_signal = on_signal
        self._on_drained = on_drained
        self.failure: str | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests finish; end the rest, each with an answer and a receipt."""
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(self._drain_timeout_s, self._on_drained)
        await super().shutdown(sockets)
        alarm.cancel()

    def fail(self, reason: str) -> None:
        """Stop, because there is nothing to serve with any more."""
        self.failure = reason
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; uvicorn would raise the signal again at the end, and a clean stop exits with 0."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._on_signal()

    async def on_tick(self, counter: int) -> bool:
        """Do uvicorn's chores, and once a second end what clients keep waiting."""
        if counter % _TICKS_PER_S == 0:
            end_overdue(self.server_state.connections)
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as usual, then tell."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()
