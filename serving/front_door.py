"""The port, taken before anything slow; and uvicorn, told what to do when it starts and stops."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from greenllm.core import GreenllmError
from serving.config import ABORT_TIMEOUT_S


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


class FrontDoor(uvicorn.Server):
    """Tells when it is up, and when running requests have had their time after a signal."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_ready: Callable[[], None],
        drain_timeout_s: float,
        on_signal: Callable[[], None],
        on_drained: Callable[[], None],
    ) -> None:
        cut_off_s = round(drain_timeout_s) + ABORT_TIMEOUT_S
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=cut_off_s
        )
        super().__init__(config)
        self._on_ready = on_ready
        self._drain_timeout_s = drain_timeout_s
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as usual, then tell."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()
