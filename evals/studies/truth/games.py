"""Steps as games: who takes part, what every subset costs, and whose shares are right. Pure.

Contract: a subset of the requests of a step is a bit mask, and has been measured; so every part of
the step with two requests or more is a game of its own, and its Shapley values are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.studies.truth.shapley import Floats, exact, misplaced

Shares = Callable[[int], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Player:
    """What a request runs in the step: tokens from `start` on, or a token and `num_drafts` more."""

    start: int
    num_tokens: int = 1
    num_drafts: int = 0

    def __str__(self) -> str:
        if not self.start:
            return f"prompt of {self.num_tokens}"
        if self.num_drafts:
            return f"check of {1 + self.num_drafts} at {self.start}"
        return f"token at {self.start}"


GAMES: Mapping[str, tuple[Player, ...]] = {
    "tokens": tuple(Player(start) for start in (8, 32, 64, 128, 256, 400)),
    "prompts": tuple(Player(0, count) for count in (4, 8, 16, 32, 64, 128)),
    "mixed": (
        Player(0, 4), Player(0, 48), Player(16), Player(128), Player(400),
        Player(96, num_drafts=4),
    ),
    "small": (
        Player(0, 4),
        Player(0, 4),
        Player(0, 12),
        Player(32),
        Player(200),
        Player(64, num_drafts=4),
    ),
    "prompt and tokens": (Player(0, 100), Player(24), Player(80), Player(160), Player(320)),
}  # fmt: skip


def coalitions(num_players: int) -> range:
    """Every subset but the empty one."""
    return range(1, 2**num_players)


def inside(mask: int) -> list[int]:
    """Players in a subset."""
    return [place for place in range(mask.bit_length()) if mask >> place & 1]


def below(mask: int) -> list[int]:
    """All subsets of a subset, in the order that `exact` takes."""
    places = inside(mask)
    return [
        sum(1 << place for bit, place in enumerate(places) if number >> bit & 1)
        for number in range(2 ** len(places))
    ]


def values_in(worth: Mapping[int, float], mask: int) -> Floats:
    """Shapley values of the players in a subset."""
    return exact(np.array([worth[subset] if subset else 0.0 for subset in below(mask)]))


def game_figures(
    players: Sequence[Player],
    worth: Mapping[int, float],
    halves: tuple[Mapping[int, float], Mapping[int, float]],
    shares: Shares,
) -> dict[str, Any]:
    """What the account's `shares` of a subset misplace, and how far the halves are apart."""
    masks = [mask for mask in coalitions(len(players)) if mask.bit_count() > 1]
    wrong = {mask: misplaced(np.array(shares(mask)), values_in(worth, mask)) for mask in masks}
    first, second = ({mask: values_in(half, mask) for mask in masks} for half in halves)
    noise = {mask: misplaced(first[mask], second[mask]) for mask in masks}
    weights = [worth[mask] for mask in masks]
    every = masks[-1]
    return {
        "worth_s": worth[every],
        "misplaced": wrong[every],
        "mean_misplaced": float(np.average(list(wrong.values()), weights=weights)),
        "floor": noise[every],
        "mean_floor": float(np.average(list(noise.values()), weights=weights)),
        "players": _players(players, values_in(worth, every), shares(every), first, second),
    }


def _players(
    players: Sequence[Player],
    truth: Floats,
    fitted: Sequence[float],
    first: Mapping[int, Floats],
    second: Mapping[int, Floats],
) -> list[dict[str, Any]]:
    """Each request of the whole step."""
    every = 2 ** len(players) - 1
    own, guess, one, two = (
        found / found.sum() for found in (truth, np.array(fitted), first[every], second[every])
    )
    return [
        {
            "player": str(player),
            "share": float(own[i]),
            "fitted": float(guess[i]),
            "error": float(guess[i] / own[i] - 1),
            "noise": float(abs(one[i] - two[i]) / own[i]),
        }
        for i, player in enumerate(players)
    ]
