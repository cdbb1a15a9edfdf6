"""The registry of adapters: which names there are, and which weights are in memory.

Contract: may be used from any thread; files are read without holding its lock. `acquire` makes sure
that weights are in memory and stay there until `release`, and that the engine which serves them is
ready for them; `weights` then finds them by digest.
Between uses the least recently used leave memory when `budget_bytes` is exceeded and are read again
on demand. A name means one content from `add`, or its first use, until `remove`: files that have
changed since are refused.

Adapters in `home/<name>/` are known without being asked for and need no `add`; one that disappears
from there, or is removed here, is unknown from then on, while requests that use it finish.

Each adapter has an owner, which this only keeps: whoever lets others in decides what it means.

Not covered: what runners keep of weights they were given. No torch: `read` brings the weights.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from greenllm.core import EVERYBODY, AdapterRef
from greenllm.model.adapter_cache import WeightCache
from greenllm.model.adapter_folders import Stamp, check_name, owner_of, resolved, stamp_of
from greenllm.model.lora_config import AdapterError
from greenllm.model.lora_layout import LoraFacts

if TYPE_CHECKING:
    from greenllm.model.lora import LoraWeights

log = logging.getLogger(__name__)


class UnknownAdapterError(AdapterError):
    """There is no adapter of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no adapter {name!r}; see the list of adapters")


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter at one moment."""

    name: str
    folder: Path
    facts: LoraFacts
    resident: bool
    in_flight: int
    registered_s: float
    owner: str | None = EVERYBODY


@dataclass(slots=True, eq=False)
class _Entry:
    """A known adapter; `reading` is held by the one thread that reads it."""

    name: str
    folder: Path
    facts: LoraFacts
    stamp: Stamp | None
    in_home: bool
    owner: str | None
    digest: str | None = None
    registered_s: float = field(default_factory=time.time)
    reading: threading.Lock = field(default_factory=threading.Lock)


class AdapterRegistry:
    """Names, reference counts and weights. `read` and `inspect` raise `AdapterError`."""

    def __init__(
        self,
        read: Callable[[Path], LoraWeights],
        inspect: Callable[[Path], LoraFacts],
        *,
        home: Path,
        roots: Sequence[Path] = (),
        budget_bytes: int = 2**30,
        reserved: Collection[str] = (),
    ) -> None:
        self._read = read
        self._inspect = inspect
        self._home = home
        self._roots = (home, *roots)
        self._reserved = frozenset(reserved)
        self._lock = threading.Lock()
        self._known: dict[str, _Entry] = {}
        self._aside: dict[str, tuple[Stamp | None, AdapterError]] = {}
        self._prepare: Callable[[AdapterRef, Path], None] = lambda ref, folder: None
        self._in_flight: Counter[AdapterRef] = Counter()
        self._cache = WeightCache(budget_bytes)

    def prepare_with(self, prepare: Callable[[AdapterRef, Path], None]) -> None:
        """Have `prepare` do what the first step with an adapter would wait for.

        `acquire` calls it in its caller's thread, with the folder that the adapter came from.
        """
        self._prepare = prepare

    def add(self, name: str, folder: Path, *, owner: str | None = EVERYBODY) -> AdapterInfo:
        """Read an adapter and make it known.

        Raises:
            AdapterError: the name, the folder or what is in it will not do; nothing has changed.
        """
        check_name(name, self._reserved)
        self._look_for(name)
        with self._lock:
            self._refuse_known(name)
        folder = resolved(folder, self._roots)
        stamp = stamp_of(folder)
        facts, weights = self._inspect(folder), self._read(folder)
        in_home = self._is_in_home(name, folder)
        entry = _Entry(name, folder, facts, stamp, in_home, owner, weights.digest)
        with self._lock:
            self._refuse_known(name)
            self._known[name] = entry
            self._cache.put(weights)
            self._cache.evict()
            return self._info(entry)

    def _refuse_known(self, name: str) -> None:
        if name in self._known:
            raise AdapterError(
                f"an adapter {name!r} is already loaded, from {self._known[name].folder}; unload it"
                " first, or choose another name"
            )

    def remove(self, name: str) -> None:
        """Forget an adapter; requests that use it finish, and then its weights go.

        Raises:
            UnknownAdapterError: there is none.
        """
        entry = self._entry(name)
        stamp = stamp_of(entry.folder)
        with self._lock:
            self._require_known(entry)
            self._forget(entry)
            if entry.in_home:
                self._aside[name] = (stamp, UnknownAdapterError(name))

    def _forget(self, entry: _Entry) -> None:
        del self._known[entry.name]
        if entry.digest is not None:
            self._drop_unknown(entry.digest)

    def _drop_unknown(self, digest: str) -> None:
        """Let go of weights that no name leads to any more."""
        if all(entry.digest != digest for entry in self._known.values()):
            self._cache.drop(digest)

    def acquire(self, name: str) -> AdapterRef:
        """Use an adapter until `release`; may read it from disk.

        Raises:
            UnknownAdapterError: there is none.
            AdapterError: its files cannot be used, or have changed.
        """
        entry = self._entry(name)
        ref = self._read_and_pin(entry)
        try:
            self._prepare(ref, entry.folder)
        except BaseException:
            self.release(ref)
            raise
        return ref

    def _read_and_pin(self, entry: _Entry) -> AdapterRef:
        with entry.reading:
            stamp = stamp_of(entry.folder)
            is_fresh = stamp in (None, entry.stamp)
            with self._lock:
                self._require_known(entry)
                if is_fresh and entry.digest is not None and entry.digest in self._cache:
                    return self._pinned(entry, entry.digest)
            weights = self._read_again(entry)
            with self._lock:
                self._require_known(entry)
                entry.digest, entry.stamp = weights.digest, stamp
                self._cache.put(weights)
                return self._pinned(entry, weights.digest)

    def _pinned(self, entry: _Entry, digest: str) -> AdapterRef:
        ref = AdapterRef(entry.name, digest, entry.facts.num_parameters, entry.owner)
        self._in_flight[ref] += 1
        self._cache.get(digest)
        self._cache.pin(digest)
        self._cache.evict()
        return ref

    def _read_again(self, entry: _Entry) -> LoraWeights:
        weights = self._read(entry.folder)
        if entry.digest is not None and weights.digest != entry.digest:
            raise AdapterError(
                f"the files of adapter {entry.name!r} in {entry.folder} have changed since it was"
                " loaded; unload it and load it again"
            )
        return weights

    def release(self, ref: AdapterRef) -> None:
        """Give back what `acquire` returned, once."""
        with self._lock:
            self._cache.unpin(ref.digest)
            self._in_flight[ref] -= 1
            if not self._in_flight[ref]:
                del self._in_flight[ref]
            self._drop_unknown(ref.digest)
            self._cache.evict()

    def weights(self, digest: str) -> LoraWeights:
        """Weights of an adapter in use; see `runner.base.AdapterSource`."""
        with self._lock:
            found = self._cache.get(digest)
        if found is None:
            raise AdapterError(f"the adapter with digest {digest} is not in memory: not acquired")
        return found

    def find(self, name: str) -> AdapterInfo:
        """An adapter by its name; its weights are not read.

        Raises:
            UnknownAdapterError: there is none.
            AdapterError: what is there cannot be used.
        """
        entry = self._entry(name)
        with self._lock:
            return self._info(entry)

    def list(self) -> tuple[AdapterInfo, ...]:
        """Every adapter there is now, by name."""
        with self._lock:
            names = set(self._known)
        names |= {path.name for path in self._home.iterdir()} if self._home.is_dir() else set()
        for name in sorted(names):
            self._look_for(name)
        with self._lock:
            return tuple(self._info(self._known[name]) for name in sorted(self._known))

    def _info(self, entry: _Entry) -> AdapterInfo:
        uses = sum(n for ref, n in self._in_flight.items() if ref.name == entry.name)
        resident = entry.digest is not None and entry.digest in self._cache
        since_s = entry.registered_s
        return AdapterInfo(
            entry.name, entry.folder, entry.facts, resident, uses, since_s, entry.owner
        )

    def _require_known(self, entry: _Entry) -> None:
        if self._known.get(entry.name) is not entry:
            raise UnknownAdapterError(entry.name)

    def _entry(self, name: str) -> _Entry:
        self._look_for(name)
        with self._lock:
            entry = self._known.get(name)
            if entry is None:
                raise self._aside.get(name, (None, UnknownAdapterError(name)))[1]
            return entry

    def _look_for(self, name: str) -> None:
        """Notice an adapter that has come to `home`, or gone from it."""
        with self._lock:
            entry = self._known.get(name)
        if entry is not None:
            self._forget_if_gone(entry)
            return
        stamp = stamp_of(self._home / name) if _is_plain(name) else None
        with self._lock:
            aside = self._aside.get(name)
            if aside is not None and aside[0] == stamp:
                return
            self._aside.pop(name, None)
        if stamp is not None:
            self._take_in(name, stamp)

    def _forget_if_gone(self, entry: _Entry) -> None:
        if not entry.in_home or stamp_of(entry.folder) is not None:
            return
        with self._lock:
            if self._known.get(entry.name) is entry:
                self._forget(entry)

    def _take_in(self, name: str, stamp: Stamp) -> None:
        """Know an adapter in `home`, or remember why it cannot be used."""
        try:
            check_name(name, self._reserved)
            folder = resolved(self._home / name, self._roots)
            facts, owner = self._inspect(folder), owner_of(folder)
            entry = _Entry(name, folder, facts, stamp, in_home=True, owner=owner)
        except AdapterError as error:
            log.warning("adapter %s: %s", name, error)
            with self._lock:
                self._aside[name] = (stamp, error)
            return
        with self._lock:
            # Removed meanwhile by another thread: what was seen before that brings no name back.
            if name not in self._aside:
                self._known.setdefault(name, entry)

    def _is_in_home(self, name: str, folder: Path) -> bool:
        return folder == (self._home / name).resolve()


def no_adapters() -> AdapterRegistry:
    """A registry that knows no adapter and can add none."""

    def refuse(folder: Path) -> NoReturn:
        raise AdapterError("this engine was made without a registry of adapters")

    return AdapterRegistry(refuse, refuse, home=Path(os.devnull))


def _is_plain(name: str) -> bool:
    """Whether a name is one step below a folder, and not a way out of it."""
    is_step = isinstance(name, str) and name not in ("", ".", "..")
    return is_step and "/" not in name and "\0" not in name
