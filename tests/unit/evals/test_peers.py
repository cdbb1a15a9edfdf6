"""Rounds, medians and the report; nothing is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.load.plan import Shot
from evals.peers.arms import ARMS, Place
from evals.peers.install import llama_commit
from evals.peers.measure import Plan, medians, rotate, run_rounds, take_turn
from evals.peers.report import draw, markdown
from evals.peers.words import VOCABULARY, merges, text_of, vocabulary, word_at, words

PLAN = Plan((1, 8), 8, 64, 128, 512, 4, 2, (0, 1), 60.0)


def result(rate: float, failed: int = 0) -> dict[str, Any]:
    summary = {
        "tokens_per_s": rate,
        "prompt_tokens_per_s": 2 * rate,
        "ttft_s": {"p50": 0.1},
        "tpot_s": None,
        "energy": None,
        "failed": failed,
        "failures": {"HTTP 500: no": failed} if failed else {},
    }
    seen = {"peak_bytes": 1_000_000}
    return {
        "summary": summary,
        "footprint": seen,
        "tokens_per_cpu_s": rate / 2,
        "client_cpu_s": 0.1,
    }


def turns(*rates: float) -> list[dict[str, Any]]:
    return [{"round": i, "loads": {"1": result(rate)}} for i, rate in enumerate(rates)]


def test_order_rotates() -> None:
    arms = list(ARMS.values())[:3]
    assert rotate(arms, 1) == [arms[1], arms[2], arms[0]]
    seen: list[tuple[str, int]] = []

    def turn(arm: Any, number: int) -> dict[str, Any]:
        seen.append((arm.name, number))
        return {"loads": {}}

    run_rounds(arms, 3, turn, lambda taken: None)
    assert [name for name, _ in seen[::3]] == [arm.name for arm in arms]
    assert len(seen) == len(set(seen)) == 9


def test_medians_leave_out_rounds_with_a_failure() -> None:
    taken = [*turns(10.0, 30.0, 20.0), {"round": 3, "loads": {"1": result(999.0, failed=1)}}]
    found = medians([*taken, {"round": 4, "failure": "did not start"}])
    assert found["loads"]["1"]["tokens_per_s"] == 20.0
    assert found["loads"]["1"]["rounds"] == 3
    assert found["loads"]["1"]["tpot_p50_s"] is None
    assert found["loads"]["1"]["failures"] == ["HTTP 500: no"]
    assert found["failures"] == ["did not start"]


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_gets_the_same_limits(name: str, tmp_path: Path) -> None:
    place = Place(tmp_path, 4321, 2, 32, PLAN.context, tmp_path)
    command = ARMS[name].command(place)
    assert "4321" in command
    assert ARMS[name].needs
    if name not in ("transformers-bf16",):
        assert "32" in command


def test_an_arm_that_is_not_installed_says_so(tmp_path: Path) -> None:
    for arm in ARMS.values():
        assert "not installed" in take_turn(arm, PLAN, tmp_path, tmp_path, 0)["failure"]


def test_the_vocabulary_is_full_and_merges_make_it() -> None:
    entries = vocabulary()
    assert len(entries) == len(set(entries)) == VOCABULARY
    known = set(entries)
    assert all(a in known and b in known and a + b in known for a, b in merges())
    assert word_at(700) == words()[700]


@pytest.mark.parametrize("count", [1, 2, 33, 512])
def test_a_text_has_exactly_the_tokens_asked_for(
    count: int, tmp_path: Path, tokens_of: Callable[[str], list[int]]
) -> None:
    assert len(tokens_of(text_of(3, Shot(5, count, 1)))) == count


@pytest.fixture(scope="module")
def tokens_of() -> Callable[[str], list[int]]:
    """The tokenizer of the benchmark's model."""
    import json

    from tokenizers import Tokenizer

    from evals.peers.words import tokenizer_json

    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json()))
    return lambda text: list(tokenizer.encode(text).ids)


def test_the_report_says_what_ran_and_what_did_not(tmp_path: Path) -> None:
    figures = {
        "command": "python -m evals.peers run",
        "date": "2026-01-02",
        "machine": "2 x CPU",
        "model": "a model",
        "rounds": 1,
        "rounds_wanted": 3,
        "plan": {
            "concurrency": [1],
            "threads": 2,
            "cores": [0, 1],
            "prompt_tokens": 64,
            "max_tokens": 128,
            "prefill_tokens": 512,
        },
        "versions": {"llama.cpp": "0.5"},
        "arms": {
            "fast": {"weights": "int8", "note": "a note", **medians(turns(1234.0))},
            "broken": {"weights": "int4", "note": "b", **medians([{"failure": "no\nway"}])},
        },
    }
    text = markdown(figures)
    assert "medians of 1 (of 3: not over) interleaved rounds" in text
    assert "| fast | int8 | 1,234 | 617 |" in text
    assert "broken could not run: no way" in text
    assert "| broken |" not in text
    draw(figures, tmp_path / "peers.svg")
    assert (tmp_path / "peers.svg").stat().st_size > 1000


def test_the_commit_of_llama_cpp_is_read_from_the_changes(tmp_path: Path) -> None:
    changes = tmp_path / "CHANGELOG.md"
    changes.write_text("- feat: update llama.cpp to ggml-org/llama.cpp@0c1e57098\n- x@bbbbbbb\n")
    assert llama_commit(changes) == "0c1e57098"
    changes.write_text("nothing")
    assert llama_commit(changes) == "unknown"
