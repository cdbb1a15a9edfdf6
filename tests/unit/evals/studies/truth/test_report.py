"""The command: which arms it runs, and what its page and plot say."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.entry import BenchError
from evals.studies import study
from evals.studies.truth.__main__ import ARMS, chosen, measure
from evals.studies.truth.games import Player, coalitions, game_figures
from evals.studies.truth.report import STUDY, page, plot


def test_a_meter_or_a_law_stands_for_its_arms() -> None:
    assert chosen("") == list(ARMS)
    assert chosen("1s/additive") == ["1s/additive"]
    assert chosen("1s") == [name for name in ARMS if name.startswith("1s/")]
    assert set(chosen("roofline,1s/additive")) == {
        "1s/additive", "1ms/roofline", "100ms/roofline", "1s/roofline", "power/roofline"
    }  # fmt: skip
    with pytest.raises(BenchError, match="there is no 2s"):
        chosen("2s")


def test_a_simulation_has_a_page_and_a_plot(tmp_path: Path) -> None:
    about = {"seeds": 1, "seconds": 20.0, "glitches": 0, "stamps": True}
    found = measure(["1ms/additive", "100ms/additive"], 1, 20.0, stamps=True, glitches=0)
    path = STUDY.save({**about, **found}, folder=tmp_path)
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| 100ms/additive |" in text
    assert "active MAPE, 100ms, all: ≤ 5%" in text
    assert "| 1ms | short |" in text
    assert "MAPE of active joules" in path.with_suffix(".svg").read_text(encoding="utf-8")


def test_measured_shares_have_a_page_and_a_plot(tmp_path: Path) -> None:
    worth = {mask: float(mask.bit_count()) for mask in coalitions(2)}
    game = game_figures((Player(8), Player(16)), worth, (worth, worth), lambda mask: [3.0, 1.0])
    about = {
        "model": "m",
        "quantize": "none",
        "threads": 1,
        "unit": "cpu",
        "rounds": 2,
    }
    result = {**about, "games": [{"step": "tokens", **game}]}
    assert "| tokens | 2.00000 | 25.0% |" in page(result)
    study.draw(plot, result, tmp_path / "plot.svg")
    assert "noise floor" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
