"""How good a model was found on examples it was not trained on.

Losses are nats per learnt token, with a bootstrap interval over examples.
Not covered: whether an answer that differs from the wanted one is right too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune.bill.phases import PhaseEnergy
from greenllm.intervals import Interval, bootstrap


@dataclass(frozen=True, slots=True)
class Losses:
    """Summed loss and learnt tokens of each example."""

    sums: tuple[float, ...]
    tokens: tuple[int, ...]

    def mean(self) -> Interval | None:
        """Nats per token; None without examples."""
        return bootstrap(self.sums, self.tokens)

    def more_than(self, before: Losses) -> Interval | None:
        """Nats per token more than before, on the same examples."""
        pairs = zip(self.sums, before.sums, strict=True)
        return bootstrap([now - then for now, then in pairs], self.tokens)


@dataclass(frozen=True, slots=True)
class ModelQuality:
    """One evaluation of a model; `matches` are None where nothing could be answered.

    `answers_j` are the joules of the model's answers, which took `answer_steps` steps; the expected
    answers would take `wanted_steps`. `losses_j` are the joules of the validation losses alone,
    `cost` is that of the whole evaluation.

    `exits` has each early exit's share of tokens that equal the whole model's, by its layer;
    `preferred` is the share of preferences whose better answer the model finds likelier.
    """

    losses: Losses
    probe: Losses
    matches: Interval | None
    exits: Mapping[int, Interval | None] = field(default_factory=dict)
    preferred: Interval | None = None
    answers_j: float | None = None
    answer_steps: int = 0
    wanted_steps: int = 0
    losses_j: float | None = None
    cost: PhaseEnergy = field(default_factory=PhaseEnergy)

    @property
    def more_answers_j(self) -> float:
        """Joules that answering would cost more, if answers were as long as the wanted ones."""
        if not self.answers_j or not self.answer_steps:
            return 0.0
        return self.answers_j * (self.wanted_steps / self.answer_steps - 1)
