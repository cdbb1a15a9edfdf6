"""The frame of all studies: rounds, results, tables, and how a command ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.entry import BenchError
from evals.studies import study
from evals.studies.ratios import medians, over, paired_ratio, spread_of
from evals.studies.runners import ARMS
from evals.tables import ratio, rows_of, table, value
from greenllm.core import GreenllmError


def test_arms_take_turns_and_change_places() -> None:
    order: list[str] = []

    def measure(arm: str, number: int) -> float:
        order.append(arm)
        return float(len(order))

    results = study.interleave(measure, 3, ["a", "b"])
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert results == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}
    assert study.rotate([1, 2, 3], 1) == [2, 3, 1]


def test_groups_follow_each_other_and_a_round_that_warms_up_is_not_kept() -> None:
    kept: list[int] = []
    found = study.interleave(
        lambda key, number: number, 1, ["1a", "1b"], ["8a"], warm_up=True,
        after=lambda found: kept.append(sum(map(len, found.values()))),
    )  # fmt: skip
    assert found == {"1a": [0], "1b": [0], "8a": [0]}
    assert kept == [1, 2, 3]


def test_ratios_are_paired_by_round() -> None:
    ratio = paired_ratio([1.0, 20.0, 300.0], [2.0, 10.0, 100.0])
    assert ratio["median"] == 2.0
    assert (ratio["q1"], ratio["q3"]) == (0.5, 3.0)


def test_the_quartiles_of_few_rounds_do_not_leave_them() -> None:
    assert paired_ratio([2.0, 4.0], [1.0, 1.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert paired_ratio([5.0], [2.0]) == {"median": 2.5, "q1": 2.5, "q3": 2.5}
    four = paired_ratio([1.0, 2.0, 3.0, 4.0], [1.0] * 4)
    assert four == {"median": 2.5, "q1": 1.25, "q3": 3.75}
    assert (spread_of(3), spread_of(4)) == ("range", "quartiles")


def test_figures_of_rounds_become_medians_and_ratios() -> None:
    turns, base = [{"s": 1.0, "j": 8.0}, {"s": 3.0, "j": 4.0}], [{"j": 2.0}, {"j": 2.0}]
    assert medians(turns) == {"s": 2.0, "j": 6.0}
    assert medians(turns, "s") == {"s": 2.0}
    assert over(turns, base, "j")["median"] == 3.0


def test_a_table_is_made_of_its_columns() -> None:
    nested = {
        "a": {"1": {"j": 0.0123, "n": 12345, "x": {"median": 1, "q1": 0.5, "q3": 2}}},
        "b": {"8": {"j": None, "n": 1.5, "x": None}},
    }
    columns = {
        "way": value("way"),
        "batch": value("batch"),
        "mJ": value("j", ".1f", 1e3),
        "n": value("n"),
        "x off": ratio("x"),
        "deep": value("x.median"),
    }
    assert table(columns, rows_of(nested, "way", "batch")).splitlines() == [
        "| way | batch | mJ | n | x off | deep |",
        "|---|---:|---:|---:|---:|---:|",
        "| a | 1 | 12.3 | 12,345 | 1.00 (0.50 to 2.00) | 1 |",
        "| b | 8 | - | 1.5 | - | - |",
    ]
    assert table({"j": value("j")}, [{}], unknown="").endswith("|  |")


def test_a_result_is_saved_with_where_it_is_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["made_up", "--trace", "/home/me/a file.csv"])
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    shown = study.Study("made_up", lambda result: f"{result['j']} J, {result['path']}\n")
    path = shown.report({"j": 3, "path": Path("a/b")}, "other")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "other.json"
    assert result["command"] == "python -m evals.studies.made_up --trace 'a file.csv'"
    assert {"date", "machine", "python", "torch"} < set(result)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == "3 J, a/b\n"
    assert "3 J, a/b" in capsys.readouterr().out
    assert not path.with_suffix(".svg").exists()


@pytest.mark.parametrize("text", ["", "1,", "0", "two", "1.5"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BenchError, match="--nodes"):
        study.split_numbers(text, "--nodes")
    assert study.split_numbers("1, 8", "--nodes") == [1, 8]


def test_runners_are_picked_by_name() -> None:
    def picked(text: str) -> list[str]:
        return study.pick(study.split_names(text), ARMS, "--arms: no")

    assert picked("openvino int8, torch float32") == ["openvino int8", "torch float32"]
    assert picked("") == list(ARMS)
    with pytest.raises(BenchError, match=r"--arms: no int9; there are torch float32"):
        picked("openvino int8,int9")


def test_mistakes_of_the_benchmarks_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise GreenllmError("no")

    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        study.Study("x").run(fail)
    assert (ended.value.code, capsys.readouterr().err) == (2, "evals.studies.x: no\n")
