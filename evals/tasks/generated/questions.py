"""The generated tasks as sets of questions, for `find_tasks`.

Contract: questions are those the bundled model is scored on, parts of which it never saw in
training. Not covered: kinds that have no answer to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evals.tasks.asked import Question
from evals.tasks.generated.tasks import held_out_examples, task_names
from evals.tasks.registry import Generated

_COMPARED = {"json": "json", "sql": "sql"}
_UNSCORED = ("story", "about", "facts", "definition", "unknown", "list", "memory")


def generated_tasks() -> dict[str, Generated]:
    """Sets of questions that are made by the same recipe as the bundled model's training."""
    names = [name for name in task_names() if name not in _UNSCORED]
    return {name: Generated(_COMPARED.get(name, "exact"), _maker(name)) for name in names}


def _maker(name: str) -> Callable[[int, int], Sequence[Question]]:
    def make(size: int, seed: int) -> Sequence[Question]:
        found = held_out_examples(name, size, seed)
        return [
            Question(
                tuple({"role": turn.role, "content": turn.content} for turn in example.prompt),
                example.answer,
            )
            for example in found
        ]

    return make
