"""The energy between two readings, taken apart: idle, active, and what other processes caused.

Idle energy is idle power times duration. On CPU and memory it counts only the seconds in which the
idle floor was this server's, and it is never more than what the meter counted. The rest is active.
On CPU and memory, CPU times say which part of the rest other processes caused.

Not covered: other users of a GPU, whose energy cannot be told from the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from greenllm.energy.meters.protocol import Reading

_MIN_IDLE_WINDOW_S = 0.2


@dataclass(frozen=True, slots=True)
class Window:
    """Joules of one window, idle and active ones per domain.

    Other processes caused `unattributed_j`, and training caused `train_j`.
    """

    duration_s: float
    idle_j: Mapping[str, float]
    active_j: Mapping[str, float]
    unattributed_j: float
    train_j: float = 0.0

    @property
    def own_j(self) -> float:
        """What this server used, without training."""
        return sum(self.idle_j.values()) + sum(self.active_j.values())

    def split_idle(self, first_s: float) -> tuple[Window, Window]:
        """The idle energy of the first seconds, and everything else."""
        share = min(1.0, first_s / self.duration_s) if self.duration_s > 0 else 0.0
        early = {domain: joules * share for domain, joules in self.idle_j.items()}
        late = {domain: joules - early[domain] for domain, joules in self.idle_j.items()}
        nothing = dict.fromkeys(self.active_j, 0.0)
        rest_s = self.duration_s * (1 - share)
        return (
            Window(self.duration_s - rest_s, early, nothing, 0.0),
            Window(rest_s, late, self.active_j, self.unattributed_j, self.train_j),
        )


class IdlePower:
    """Power per domain with nothing running: known beforehand, or learnt from idle windows.

    Learnt as a slow average, not a minimum: a server started under load must be able to unlearn.
    """

    def __init__(self, known_w: Mapping[str, float] | None) -> None:
        self._fixed = False
        self.watts: dict[str, float] = {}
        self.know(known_w)

    def know(self, watts: Mapping[str, float] | None) -> None:
        """Take what the meter knows by now; None is nothing."""
        if watts is not None:
            self._fixed, self.watts = True, dict(watts)

    def learn(self, duration_s: float, joules: Mapping[str, float]) -> None:
        """Follow an idle window; short ones are too coarse for the counters."""
        if self._fixed or duration_s < _MIN_IDLE_WINDOW_S:
            return
        for domain, energy_j in joules.items():
            now_w = energy_j / duration_s
            self.watts[domain] = 0.8 * self.watts.get(domain, now_w) + 0.2 * now_w


def take_apart(before: Reading, now: Reading, idle_w: Mapping[str, float]) -> Window:
    """Split the difference of two readings."""
    duration_s = max(0.0, now.at_s - before.at_s)
    floor_s = duration_s
    if before.floor_s is not None and now.floor_s is not None:
        floor_s = max(0.0, now.floor_s - before.floor_s)
    others_share, train_share = _others_shares(before, now)
    idle: dict[str, float] = {}
    active: dict[str, float] = {}
    unattributed_j = train_j = 0.0
    for domain, value in now.joules.items():
        energy_j = max(0.0, value - before.joules.get(domain, 0.0))
        is_gpu = domain == "gpu"
        at_rest_s = duration_s if is_gpu else floor_s
        idle[domain] = min(energy_j, idle_w.get(domain, 0.0) * at_rest_s)
        above_idle_j = energy_j - idle[domain]
        shared_j = 0.0 if is_gpu else above_idle_j
        active[domain] = above_idle_j - shared_j * (others_share + train_share)
        unattributed_j += shared_j * others_share
        train_j += shared_j * train_share
    return Window(duration_s, idle, active, unattributed_j, train_j)


def _others_shares(before: Reading, now: Reading) -> tuple[float, float]:
    """Fractions of the CPU time in between of others and of training; 0 where it is not told."""
    if None in (before.own_cpu_s, now.own_cpu_s, before.machine_cpu_s, now.machine_cpu_s):
        return 0.0, 0.0
    own_s = (now.own_cpu_s or 0.0) - (before.own_cpu_s or 0.0)
    machine_s = (now.machine_cpu_s or 0.0) - (before.machine_cpu_s or 0.0)
    if machine_s <= 0:
        return 0.0, 0.0
    beside = min(1.0, max(0.0, 1 - own_s / machine_s))
    training = min(beside, max(0.0, (now.train_cpu_s - before.train_cpu_s) / machine_s))
    return beside - training, training
