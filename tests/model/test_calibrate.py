"""Thresholds are the smallest that keep what they promise, and config.json keeps all else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evals import calibrate
from evals.calibrate import (
    CalibrationAnswer,
    Prompt,
    find_prompts,
    pieces,
    read_exit,
    right,
    task_prompts,
    text_prompts,
)
from evals.calibration import (
    LEAST,
    Position,
    Share,
    agreement_at,
    choose,
    markdown,
    with_thresholds,
)
from evals.entry import BenchError
from greenllm.core import Approximation
from greenllm.speculation.calibrated_exit import EXIT_THRESHOLDS
from greenllm.speculation.calibrated_exit import read_exit as thresholds_of
from greenllm.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("part", "total", "low", "high"),
    [
        (90, 100, 0.8256, 0.9448),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (950, 1000, 0.9347, 0.9619),
        (0, 0, 0.0, 1.0),
    ],
)
def test_intervals_are_wilsons(part: int, total: int, low: float, high: float) -> None:
    assert Share(part, total).interval == pytest.approx((low, high), abs=1e-4)


def test_shares_say_of_how_many() -> None:
    summary = Share(3, 4).summary()
    assert (summary["share"], summary["of"]) == (0.75, 4)
    assert summary["interval_95"] == list(Share(3, 4).interval)
    assert Share(0, 0).value == 1.0


def spots(right: int, *wrong: float) -> list[Position]:
    """So many positions where the exit is right, and how sure it was where it is wrong."""
    return [*(Position(0.9, True) for _ in range(right)), *(Position(c, False) for c in wrong)]


def test_only_what_leaves_and_is_wrong_costs_agreement() -> None:
    found = spots(5, 0.2, 0.5, 0.8)
    shares = [agreement_at(found, threshold) for threshold in (0.1, 0.2, 0.5, 0.79, 0.8, 0.95)]
    assert [share.part for share in shares] == [5, 6, 7, 7, 8, 8]
    assert {share.total for share in shares} == {8}


def test_a_margin_is_kept() -> None:
    """Of 1000 tokens 50 might be lost by the share itself, 36 by the lower end of its interval."""
    sure = [place / 1000 for place in range(900, 1000)]
    threshold = choose(spots(900, *sure), 0.95)
    assert threshold is not None
    lost = sum(confidence > threshold for confidence in sure)
    assert Share(1000 - lost, 1000).interval[0] >= 0.95
    assert Share(1000 - lost - 1, 1000).interval[0] < 0.95
    assert lost == 36


def test_an_exit_that_is_good_enough_may_always_give_its_token() -> None:
    assert choose(spots(1000, 0.5, 0.99), 0.95) == LEAST
    assert choose(spots(1000), 0.95) == LEAST
    assert choose(spots(1000, *[LEAST / 2] * 500), 0.95) == LEAST


def test_what_cannot_be_promised_has_no_threshold() -> None:
    assert choose([], 0.9) is None
    assert choose(spots(20), 0.9) is None, "too few were seen"
    assert choose(spots(1000, *[1.0] * 200), 0.95) is None, "surer than sure is nothing"
    assert choose(spots(1000, *[0.99999999] * 200), 0.95) is None


@given(
    st.integers(0, 400),
    st.lists(st.floats(0, 1, exclude_max=True), max_size=60),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_no_smaller_threshold_would_do(count: int, wrong: list[float], agreement: float) -> None:
    found = spots(count, *wrong)
    threshold = choose(found, agreement)
    if threshold is None:
        assert agreement_at(found, 1 - 2e-6).interval[0] < agreement
        return
    assert LEAST <= threshold < 1
    assert agreement_at(found, threshold).interval[0] >= agreement
    smaller = agreement_at(found, threshold - 2e-6).interval[0]
    assert threshold == LEAST or smaller < agreement
    Approximation(1, threshold)


CONFIG = """{
  "architectures": [
    "LlamaForCausalLM"
  ],
  "greenllm_exit_layers": [
    2,
    4
  ],
  "rms_norm_eps": 1e-06,
  "name": "\u00fc",
  "rope": {
    "theta": 10000.0
  }
}
"""


def test_a_config_keeps_all_else() -> None:
    written = with_thresholds(CONFIG, 4, {0.95: 0.7, 0.9: 0.5})
    assert written.startswith(CONFIG.removesuffix("\n}\n") + ",\n")
    assert written.endswith("  }\n}\n")
    assert thresholds_of(4, json.loads(written)).thresholds == {0.9: 0.5, 0.95: 0.7}


def test_another_exit_keeps_its_thresholds() -> None:
    once = with_thresholds(CONFIG, 2, {0.9: 0.6})
    twice = with_thresholds(with_thresholds(once, 4, {0.9: 0.1}), 4, {0.99: 0.5})
    assert json.loads(twice)[EXIT_THRESHOLDS] == {"2": {"0.9": 0.6}, "4": {"0.99": 0.5}}
    assert with_thresholds(twice, 4, {0.99: 0.5}) == twice


def test_what_another_text_needed_may_stay() -> None:
    before = with_thresholds(CONFIG, 4, {0.9: 0.1, 0.95: 0.7, 0.98: 0.8})
    after = with_thresholds(before, 4, {0.9: 0.5, 0.95: 0.3}, keep_higher=True)
    assert json.loads(after)[EXIT_THRESHOLDS] == {"4": {"0.9": 0.5, "0.95": 0.7, "0.98": 0.8}}


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("indent", [None, 1, 4, "\t"])
def test_a_config_keeps_its_looks(indent: Any, end: str) -> None:
    before = {"a": [1, {"b": None}], "c": {}}
    after = {**before, EXIT_THRESHOLDS: {"4": {"0.9": 0.5}}}
    written = with_thresholds(json.dumps(before, indent=indent) + end, 4, {0.9: 0.5})
    assert written == json.dumps(after, indent=indent) + end


def test_thresholds_go_into_the_models_folder(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(CONFIG, encoding="utf-8")
    calibrate.write(str(tmp_path), 2, {0.9: 0.25})
    assert path.read_text(encoding="utf-8") == with_thresholds(CONFIG, 2, {0.9: 0.25})


class FirstLayers:
    """Says of each place what is written down for it: a token and the height of its logit."""

    device = torch.device("cpu")

    def __init__(self, tokens: list[int], heights: list[float]) -> None:
        self.said = list(zip(tokens, heights, strict=True))
        self.read: list[int] = []

    def __call__(self, ids: torch.Tensor) -> Any:
        self.read = ids[0].tolist()
        logits = torch.zeros(1, len(self.read), 4)
        for place, (token, height) in enumerate(self.said):
            logits[0, place, token] = height
        return SimpleNamespace(logits=logits)


PROMPT = Prompt((1, 2), "right")


def test_the_exit_is_read_at_each_place_after_the_first() -> None:
    model = FirstLayers([0, 1, 3, 2], [0.0, 0.0, 20.0, 0.0])
    answer = CalibrationAnswer(PROMPT, (3, 3, 1), True, None)
    first, second, third = read_exit(model, answer)
    assert model.read == [1, 2, 3, 3]
    assert first == Position(0.0, True), "it is never the exit's"
    assert (second.agrees, third.agrees) == (True, False)
    assert (second.confidence, third.confidence) == pytest.approx((1.0, 0.25), abs=1e-6)


def test_an_answer_of_one_token_gives_the_exit_nothing_to_say() -> None:
    answer = CalibrationAnswer(PROMPT, (3,), True, None)
    assert read_exit(FirstLayers([], []), answer) == [Position(0.0, True)]


class Letters:
    """A tokenizer of letters; a chat is its contents, and a colon."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: tuple[int, ...]) -> str:
        return "".join(map(chr, ids))

    def chat_ids(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> list[int]:
        text = "".join(turn["content"] for turn in turns)
        return self.encode(text + ":" * add_generation_prompt)


LETTERS = cast(Tokenizer, Letters())


def test_answers_are_right_to_the_letter() -> None:
    def said(text: str, prompt: Prompt = PROMPT, *, stopped: bool = True) -> CalibrationAnswer:
        return CalibrationAnswer(prompt, tuple(map(ord, text)), stopped, None)

    open_ = replace(PROMPT, answer=None)
    found = [said("right"), said("right "), said("right", stopped=False), said("right", open_)]
    assert right(LETTERS, found) == Share(1, 3)
    assert right(LETTERS, [said("right", open_)]) == Share(0, 0)


def test_prompts_are_tasks_that_training_never_shows() -> None:
    found = task_prompts(LETTERS, 30)
    assert len(found) == len(set(found)) == 30
    assert found == task_prompts(LETTERS, 30)
    assert all(prompt.token_ids[-1] == ord(":") for prompt in found)
    assert 0 < sum(prompt.answer is not None for prompt in found) <= 30
    assert len({prompt.token_ids[:6] for prompt in found}) > 10, "of many tasks"


def test_pieces_of_a_text_are_spread_and_begin_with_a_word() -> None:
    words = [f"word{number}" for number in range(400)]
    found = pieces(" ".join(words), 7)
    assert len(found) == 7
    assert found[0].startswith("word0 word1")
    assert all(piece.split()[0] in words for piece in found)
    starts = [int(piece.split()[0].removeprefix("word")) for piece in found]
    assert starts == sorted(set(starts))
    assert starts[-1] > 300
    assert pieces("", 3) == pieces("   ", 3) == []
    assert pieces("single", 3) == ["single"]


def test_prompts_from_a_text_are_short() -> None:
    found = text_prompts("a b c d " * 400, LETTERS, 6)
    assert [len(prompt.token_ids) for prompt in found] == [calibrate.PIECE_TOKENS] * 6
    assert {prompt.answer for prompt in found} == {None}


def test_prompts_leave_room_for_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("a b c d " * 400, encoding="utf-8")

    def bench(context: int) -> Any:
        info = SimpleNamespace(context_length=context)
        return SimpleNamespace(tokenizer=LETTERS, runner=SimpleNamespace(info=info))

    assert len(find_prompts(bench(100), path, 6, 36)) == 6
    with pytest.raises(BenchError, match="0 prompts of at most 63 tokens found: two are needed"):
        find_prompts(bench(99), path, 6, 36)


def test_the_table_has_a_row_for_each() -> None:
    done = {
        "asked": 0.9,
        "threshold": 0.1234567,
        "calibrated": Share(95, 100).summary(),
        "measured": Share(93, 100).summary(),
        "mean_layers": 5.125,
        "same_answers": Share(3, 4).summary(),
        "right": Share(1, 2).summary(),
    }
    plain = {**done, "asked": None, "threshold": None, "calibrated": None}
    without = {**plain, "right": Share(0, 0).summary()}
    impossible = {"asked": 0.99, "threshold": None}
    lines = markdown([plain, done, without, impossible]).splitlines()
    assert len(lines) == 6
    assert {line.count("|") for line in lines} == {10}
    assert lines[2].startswith("| plain |  |  | 93.00% |")
    assert lines[3].startswith("| 0.9 | 0.1235 | 95.00% | 93.00% | 86.25% | 96.57% | 5.12 | 75.0%")
    assert lines[3].endswith("| 50.0% |")
    assert lines[4].endswith("|  |")
    assert lines[5].startswith("| 0.99 | none |")
