"""Slows down whoever tries keys that are wrong, by address.

Contract: the first few wrong keys of an address are answered at once, later ones after a wait that
doubles up to `LONGEST_WAIT_S`. A minute without one forgives. At most `MOST_ADDRESSES` are kept,
the latest, and at most `MOST_WAITING` answers wait: the rest come at once. IPv6 addresses count by
their network of 64 bits. Whoever has a right key never waits.

Not covered: clients behind one proxy, which are one address.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from collections.abc import Awaitable, Callable

MOST_ADDRESSES, MOST_WAITING = 4096, 256
FREE_TRIES, FIRST_WAIT_S, LONGEST_WAIT_S, FORGIVEN_AFTER_S = 8, 0.1, 2.0, 60.0


class Attempts:
    """See the module. Used on the event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._num_waiting = 0

    @property
    def num_addresses(self) -> int:
        """Addresses that are remembered."""
        return len(self._failed)

    async def slow_down(self, address: str | None) -> None:
        """Note a wrong key, and wait as long as its answer has to."""
        wait_s = self.wait_s(address)
        if wait_s <= 0 or self._num_waiting >= MOST_WAITING:
            return
        self._num_waiting += 1
        try:
            await self._sleep(wait_s)
        finally:
            self._num_waiting -= 1

    def wait_s(self, address: str | None) -> float:
        """Note a wrong key; the seconds that its answer has to wait."""
        network, now_s = _network(address), self._clock()
        count, last_s = self._failed.pop(network, (0, now_s))
        count = 1 if now_s - last_s > FORGIVEN_AFTER_S else count + 1
        self._failed[network] = (count, now_s)
        if len(self._failed) > MOST_ADDRESSES:
            self._failed.popitem(last=False)
        doublings = min(count - FREE_TRIES - 1, 16)
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**doublings) if doublings >= 0 else 0.0


def _network(address: str | None) -> str:
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)
