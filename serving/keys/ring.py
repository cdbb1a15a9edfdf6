"""The keys that a running server knows: those of `--api-keys`, and those of the keys file.

Contract: a change of the file is noticed within `LOOK_EVERY_S`. A file that cannot be read any
more, or is garbled, changes nothing: the keys that were known stay, and the log says so once. Keys
are compared by their hashes, each in constant time, so that how long it takes tells nothing.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.keys.caller import PLAIN, SCOPES, Caller
from serving.keys.store import FINGERPRINT, Key, KeyFileError, hash_of, read_keys

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
_Stamp = tuple[int, int, int]


def fingerprint(token: bytes) -> str:
    """The name of a key that has no other; the key itself is never stored."""
    return FINGERPRINT + hash_of(token)[:12]


class KeyRing:
    """See the module. Used on the event loop."""

    def __init__(
        self,
        tokens: Sequence[str],
        path: Path | None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        *,
        share_cache: bool = False,
    ) -> None:
        """Read the file, if there is one.

        Raises:
            KeyFileError: it cannot be used.
        """
        self._path = path
        self._clock = clock
        self._wall_clock = wall_clock
        self._share_cache = share_cache
        self._fixed = tuple(
            (hash_of(token), fingerprint(token)) for token in map(str.encode, tokens)
        )
        self._stamp = None if path is None else _stamp_of(path)
        self._keys: tuple[Key, ...] = () if path is None else read_keys(path)
        self._looked_s = clock()

    @property
    def is_required(self) -> bool:
        """Whether callers need a key."""
        return bool(self._fixed) or self._path is not None

    def find(self, token: bytes | None) -> Caller | None:
        """Whoever shows this key; None where it is not valid.

        Where no keys are required it is anybody, by the name that the key would have.
        """
        if not self.is_required:
            name = None if token is None else fingerprint(token)
            return Caller(name, frozenset(SCOPES), known=False)
        if not token:
            return None
        self._look()
        given, now_s = hash_of(token), self._wall_clock()
        matches = [name for known, name in self._fixed if hmac.compare_digest(known, given)]
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, given)]
        if found and found[0].state(now_s) == "active":
            return found[0].caller(cache_salt=self._salt(found[0].name))
        if matches:
            return Caller(matches[0], PLAIN, cache_salt=self._salt(matches[0]))
        return None

    def _salt(self, name: str) -> str | None:
        return None if self._share_cache else name

    def _look(self) -> None:
        """Read the file again if it has changed."""
        now_s = self._clock()
        if self._path is None or now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s, stamp = now_s, _stamp_of(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except KeyFileError as error:
            log.error("%s; the keys that were known stay", error)


def _stamp_of(path: Path) -> _Stamp | None:
    """Changes when the file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
