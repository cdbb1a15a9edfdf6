"""A technique is compared round by round, with plain decoding and within its precision."""

from __future__ import annotations

from evals.evaluation import Example, Result
from evals.served import Cost
from evals.studies.techniques import Continuing, figures
from evals.tasks.base import Score


def cell(*joules_per_token: float) -> list[Result]:
    """Rounds of one answer with ten tokens."""
    return [
        Result(
            Continuing(1, 10),
            [Example(Score(1.0), Cost(10 * joules, None, None, 0, 10), 1.0)],
            2.0,
        )
        for joules in joules_per_token
    ]


def test_a_technique_is_beside_plain_decoding_and_its_own_precision() -> None:
    cells = {
        ("none", "off", 1): cell(1.0, 2.0, 3.0),
        ("none", "auto", 1): cell(2.0, 4.0, 6.0),
        ("int8", "off", 1): cell(0.5, 1.0, 1.5),
        ("int8", "auto", 1): cell(0.25, 0.25, 1.5),
    }
    found = figures(cells, ["none", "int8"], has_quality=True)
    assert found["none"]["auto"]["1"]["joules_over_plain"]["median"] == 2.0
    guessing = found["int8"]["auto"]["1"]
    assert guessing["joules_over_plain"]["median"] == 0.25
    assert guessing["joules_over_off"]["median"] == 0.5
    assert guessing["joules_per_token"] == 0.25
    assert guessing["tokens_per_s"] == 5.0
    assert guessing["quality"]["value"] == 1.0
