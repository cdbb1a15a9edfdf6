"""Early exits of approximate answers: what a sequence skips, and what it has to catch up with.

A token that leaves the model early has no keys and values in the layers after the exit: it is
pending. The next step of its sequence that runs through all layers computes them too, exactly (Bae
et al., 2023, arXiv:2310.05424, "synchronized parallel decoding").

Contract: a sequence holds an `ExitState`. The scheduler makes an `ExitOffer` of it for a chunk, the
runner answers with an `ExitResult` in the sample, and the state is settled with that. Plain
numbers.

Not covered: which exits a model has (see `speculation.calibrated_exit`), and early exits that only
draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# With so many pending tokens the next runs through all layers: the step that does it stays small.
MOST_PENDING = 12
# Greedy answers take so many tokens at a time from the exit.
EXIT_RUN = 4


@dataclass(frozen=True, slots=True)
class ExitOffer:
    """The exit of one chunk: after `layer` layers, for tokens more probable than `threshold`.

    Before the chunk runs through all layers, `num_pending` earlier tokens have to; it must do so
    now unless the exit `is_open`.
    """

    layer: int
    threshold: float
    num_pending: int = 0
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class ExitResult:
    """An exit was asked for `num_steps` tokens, and was sure of the first `num_tokens`."""

    num_tokens: int
    num_steps: int

    @property
    def is_all(self) -> bool:
        """Whether it was sure of all, so that no other layer ran."""
        return 0 < self.num_tokens == self.num_steps


@dataclass(slots=True, eq=False)
class ExitState:
    """A sequence's early exit, with its newest `num_pending` computed tokens pending.

    `num_exited` counts the answer's tokens that the exit chose.
    """

    layer: int
    threshold: float
    num_pending: int = 0
    num_exited: int = 0

    def offer(self) -> ExitOffer:
        """The exit as the newest token may use it."""
        is_open = self.num_pending < MOST_PENDING
        return ExitOffer(self.layer, self.threshold, self.num_pending, is_open)

    def settle(self, result: ExitResult | None, num_found: int, num_taken: int) -> None:
        """Note a step that found so many tokens, of which the answer took the first ones."""
        num_exited = 0 if result is None else result.num_tokens
        self.num_pending = self.num_pending + num_found if num_exited == num_found else 0
        self.num_exited += min(num_exited, num_taken)

    def forget(self) -> None:
        """Nothing is pending any more: all tokens will be computed again."""
        self.num_pending = 0


def mean_layers(exits: Sequence[ExitState], num_tokens: int, num_layers: int) -> float | None:
    """Layers asked for each of an approximate answer's tokens; None without tokens."""
    skipped = sum((num_layers - one.layer) * one.num_exited for one in exits)
    return num_layers - skipped / num_tokens if num_tokens else None
