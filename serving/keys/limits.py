"""How much each key may use, and how much of it is left.

Contract: a request begins while something is left of each limit, and may end beyond it: what it
costs is known when it has ended. A minute's allowance comes back steadily, and what was used beyond
it is paid back first. So in any t minutes a key gets at most t + 1 allowances, and what ran
when they were spent. Days are UTC's, and begin with what `spent` says was used before.

Not covered: requests at once, which whoever has them in flight counts; joules that nobody metered;
several servers, each of which counts for itself.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

DAY_S = 86_400
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    joules_per_day: float | None = None
    grams_per_day: float | None = None

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{spec.name} must be above 0, not {value}")


class LimitExceededError(Exception):
    """Nothing is left of a limit, `limit`; `retry_after_s` says when there is."""

    def __init__(self, limit: str, allowed: float, retry_after_s: float) -> None:
        words = limit.replace("_", " ")
        super().__init__(f"this key has used its {allowed:g} {words}; try again later")
        self.limit = limit
        self.retry_after_s = max(1, math.ceil(retry_after_s))


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit: what is allowed, what is left, and the seconds until all of it is there again."""

    allowed: float
    left: float
    reset_s: float


@dataclass(slots=True)
class _Minute:
    """An allowance that comes back steadily; `used` is what is not back yet."""

    used: float = 0.0
    at_s: float = 0.0

    def standing(self, allowed: float, now_s: float) -> Standing:
        back = allowed * (now_s - self.at_s) / _MINUTE_S
        self.used, self.at_s = max(0.0, self.used - back), now_s
        return Standing(allowed, allowed - self.used, self.used * _MINUTE_S / allowed)


@dataclass(slots=True)
class _Account:
    """What one key has used."""

    requests: _Minute
    tokens: _Minute
    day: int
    joules: float = 0.0
    grams: float = 0.0


class Limiter:
    """Counts for keys; its methods may be called from any thread."""

    def __init__(
        self,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        spent: Mapping[str | None, tuple[float, float]],
    ) -> None:
        """`spent` has the joules and grams of each key on the day that it is now."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._spent = spent
        self._first_day = self._day
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}

    @property
    def _day(self) -> int:
        return int(self._wall_clock() // DAY_S)

    def begin(self, name: str, limits: Limits, *, spends: bool) -> None:
        """Count a request of a key; `spends` is whether it uses tokens, joules and grams.

        Raises:
            LimitExceededError: it may not begin, and is not counted.
        """
        with self._lock:
            account = self._account(name)
            standings = self._standings(account, limits)
            _require(standings, "requests_per_minute", 1.0 - 1e-9)
            for limit in ("tokens_per_minute", "joules_per_day", "grams_per_day") if spends else ():
                _require(standings, limit, 0.0)
            account.requests.used += 1

    def spend(
        self, name: str | None, tokens: int, joules: float | None, grams: float | None
    ) -> None:
        """Count what a request has used; of keys that never began one nothing is kept."""
        with self._lock:
            if name is not None and name in self._accounts:
                account = self._account(name)
                account.tokens.used += tokens
                account.joules += joules or 0.0
                account.grams += grams or 0.0

    def charge(self, name: str, joules: float, grams: float) -> None:
        """Count what a key's training has used, whether or not it has asked anything since."""
        with self._lock:
            account = self._account(name)
            account.joules += joules
            account.grams += grams

    def standings(self, name: str, limits: Limits) -> dict[str, Standing]:
        """Where a key stands with each limit that it has."""
        with self._lock:
            return self._standings(self._account(name), limits)

    def _account(self, name: str) -> _Account:
        now_s, day = self._clock(), self._day
        account = self._accounts.get(name)
        if account is None:
            joules, grams = self._spent.get(name, (0.0, 0.0)) if day == self._first_day else (0, 0)
            account = _Account(_Minute(0.0, now_s), _Minute(0.0, now_s), day, joules, grams)
            self._accounts[name] = account
        if account.day != day:
            account.day, account.joules, account.grams = day, 0.0, 0.0
        return account

    def _standings(self, account: _Account, limits: Limits) -> dict[str, Standing]:
        now_s = self._clock()
        found: dict[str, Standing] = {}
        minutes = {"requests_per_minute": account.requests, "tokens_per_minute": account.tokens}
        for limit, minute in minutes.items():
            if (allowed := getattr(limits, limit)) is not None:
                found[limit] = minute.standing(allowed, now_s)
        midnight_s = DAY_S - self._wall_clock() % DAY_S
        days = {"joules_per_day": account.joules, "grams_per_day": account.grams}
        for limit, used in days.items():
            if (allowed := getattr(limits, limit)) is not None:
                found[limit] = Standing(allowed, allowed - used, midnight_s)
        return found


def _require(standings: Mapping[str, Standing], limit: str, least: float) -> None:
    """Refuse unless `least` is left of a limit, and more than nothing."""
    found = standings.get(limit)
    if found is None or (found.left >= least and found.left > 0):
        return
    wait_s = found.reset_s
    if limit.endswith("_per_minute"):
        wait_s = (least - found.left) * _MINUTE_S / found.allowed
    raise LimitExceededError(limit, found.allowed, wait_s)
