"""What a server has to decide who may ask what: keys, limits, wrong keys, the audit log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from greenllm.energy.ledger import GroupSums
from serving.config import ServeConfig
from serving.keys.attempts import Attempts
from serving.keys.audit import FILE_NAME, AuditLog
from serving.keys.limits import DAY_S, Limiter
from serving.keys.ring import KeyRing


@dataclass(frozen=True, slots=True)
class Access:
    """See the module."""

    keys: KeyRing
    limiter: Limiter
    attempts: Attempts
    audit: AuditLog


def ring_of(config: ServeConfig) -> KeyRing:
    """The keys that a configuration names.

    Raises:
        KeyFileError: the keys file cannot be used.
    """
    return KeyRing(
        config.api_keys or (),
        config.keys_path,
        time.monotonic,
        time.time,
        share_cache=config.share_prefix_cache,
    )


def open_access(
    config: ServeConfig,
    sums_by_key: Callable[..., Sequence[GroupSums]],
    trained: Callable[[float], Mapping[str, tuple[float, float]]],
) -> Access:
    """Everything, with what each key has used today.

    `sums_by_key(since_s=...)` asks the ledger, and `trained` the jobs, for joules and grams.

    Raises:
        KeyFileError: the keys file cannot be used.
    """
    midnight_s = time.time() // DAY_S * DAY_S
    spent: dict[str | None, tuple[float, float]] = dict(trained(midnight_s).items())
    for row in sums_by_key(since_s=midnight_s):
        joules, grams = spent.get(row.group, (0.0, 0.0))
        spent[row.group] = joules + (row.total_j or 0.0), grams + (row.gco2e or 0.0)
    return Access(
        ring_of(config),
        Limiter(time.monotonic, time.time, spent),
        Attempts(time.monotonic),
        AuditLog(config.data_path / FILE_NAME, time.time),
    )
