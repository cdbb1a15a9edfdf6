"""Wall meters that answer over HTTP: Redfish, Shelly, Tasmota, Home Assistant, or a bare number.

Contract: only http and https; certificates are checked. Credentials come from the environment
(WALL_METER_TOKEN, or WALL_METER_USER and WALL_METER_PASSWORD), never from the command line, where
everybody on the machine could read them, and go nowhere but to the address that was named:
redirects and proxies are not followed. An answer takes some seconds and 256 kB at most.

Not covered: sessions that need a log-in first; several power supplies in separate resources.
"""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from greenllm.energy.calibration.wall import WallError, WallSample, is_power

TOKEN, USER, PASSWORD = "WALL_METER_TOKEN", "WALL_METER_USER", "WALL_METER_PASSWORD"
_TIMEOUT_S = 3.0
_LARGEST_BYTES = 256 << 10
_CHUNK_BYTES = 16 << 10
# Where the products have their power, the sum of a machine first.
_PATHS: tuple[tuple[str | int, ...], ...] = (
    ("PowerControl", 0, "PowerConsumedWatts"),
    ("PowerConsumedWatts",),
    ("PowerWatts", "Reading"),
    ("apower",),
    ("switch:0", "apower"),
    ("StatusSNS", "ENERGY", "Power"),
    ("state",),
    ("meters", 0, "power"),
    ("power",),
)
_UNITS = {"W": 1.0, "kW": 1000.0, "mW": 0.001}


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Credentials are not for whomever an answer names."""


class UrlWall:
    """A meter that tells the power now at an address."""

    def __init__(
        self,
        url: str,
        *,
        environment: Mapping[str, str],
        ca_file: Path | None = None,
        timeout_s: float = _TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to ask.

        Raises:
            WallError: the address is none that is asked, or the CA file cannot be used.
        """
        self.name = url.partition("?")[0]
        self._timeout_s = timeout_s
        self._clock = clock
        self._request = Request(_checked(url), headers=_headers(environment))
        try:
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        except OSError as error:
            raise WallError(f"--ca-file {ca_file}: {error}") from error
        self._opener = build_opener(ProxyHandler({}), _NoRedirect(), HTTPSHandler(context=context))

    def poll(self, now_s: float) -> WallSample:
        """Ask."""
        watts = watts_in(self._ask())
        if watts is None:
            raise WallError(f"{self.name}: no power in the answer")
        return WallSample(now_s, watts)

    def between(self, from_s: float, to_s: float) -> list[WallSample]:
        """Nothing: it remembers no past."""
        return []

    def _ask(self) -> str:
        ends_s = self._clock() + self._timeout_s
        body = b""
        try:
            with self._opener.open(self._request, timeout=self._timeout_s) as answer:
                while chunk := answer.read1(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > _LARGEST_BYTES:
                        raise WallError(f"{self.name}: the answer is larger than 256 kB")
                    if self._clock() > ends_s:
                        raise WallError(f"{self.name}: the answer takes too long")
        except HTTPError as error:
            with error:
                raise WallError(f"{self.name}: HTTP {error.code} {error.reason}") from error
        except ValueError as error:  # its message may have the credentials in it
            raise WallError(f"{self.name}: address or credentials cannot be sent") from error
        except (OSError, HTTPException) as error:
            raise WallError(f"{self.name}: {getattr(error, 'reason', None) or error}") from error
        return body.decode("utf-8", errors="replace")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise WallError(f"--meter-watts: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise WallError("--meter-watts: only http:// and https:// are asked")
    if parts.username is not None or parts.password is not None:
        raise WallError(f"--meter-watts: no credentials in the address: set {USER} and {PASSWORD}")
    return url


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    headers = {"Accept": "application/json, text/plain"}
    if token := environment.get(TOKEN):
        headers["Authorization"] = f"Bearer {token}"
    elif user := environment.get(USER):
        pair = f"{user}:{environment.get(PASSWORD, '')}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    return headers


def watts_in(text: str) -> float | None:
    """The power in an answer, or None; a unit that is told must be one of power."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return _watts(answer)
    attributes = answer.get("attributes")
    told = attributes.get("unit_of_measurement", "W") if isinstance(attributes, dict) else "W"
    scale = _UNITS.get(told) if isinstance(told, str) else None
    values = (_watts(_at(answer, path)) for path in _PATHS)
    watts = next((value for value in values if value is not None), None)
    return None if scale is None or watts is None else watts * scale


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _watts(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        watts = float(value)
    except (ValueError, OverflowError):
        return None
    return watts if is_power(watts) else None
