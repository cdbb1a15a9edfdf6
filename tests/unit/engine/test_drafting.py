"""Which drafters a server has, what requests may ask for, and which options cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from greenllm.config import ConfigError
from greenllm.core import (
    Approximation,
    Chunk,
    DraftPass,
    InvalidRequestError,
    Speculation,
    SpeculativeMethod,
    sequences_of,
)
from greenllm.engine.drafting import EXIT_LAYERS, default_exit, make_drafting, trained_exits
from greenllm.exits import EXIT_RUN
from greenllm.model.info import LoadError
from greenllm.options import EngineConfig
from greenllm.runner.base import Runner
from greenllm.shape import ModelShape
from greenllm.speculation.calibrated_exit import EXIT_THRESHOLDS, CalibratedExit
from greenllm.speculation.drafter import Drafter
from greenllm.speculation.speculator import Speculator
from tests.fake_engine import make_engine, make_request, make_runner


class Guesser:
    """A drafter that only remembers what it was prepared for."""

    shape: ModelShape | None = None
    passes: Sequence[DraftPass] = ()

    def __init__(self) -> None:
        self.prepared: list[int] = []

    def prepare(self, num_tokens: int) -> None:
        self.prepared.append(num_tokens)

    def draft(self, chunks: Sequence[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        return [()] * len(chunks)


def runner(num_layers: int, early_exit: Callable[[int], Drafter]) -> Runner:
    """As much of a runner as is looked at."""
    shape = ModelShape(1000, 500, num_layers, 8, 64)
    return cast(Runner, SimpleNamespace(shape=shape, early_exit=early_exit))


def guesser(_: int) -> Drafter:
    return Guesser()


def no_exit(_: int) -> Drafter:
    raise LoadError("its layers cannot be told apart")


def config(folder: Path, trained: Any = None, **options: Any) -> EngineConfig:
    """Options for a model that was trained to be left after some layers."""
    written = {} if trained is None else {EXIT_LAYERS: trained}
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    return EngineConfig(model=str(folder), **options)


@pytest.mark.parametrize(
    ("trained", "num_layers", "expected"),
    [
        ((), 30, 10),
        ((), 2, 1),
        ((), 4, 1),
        ((2, 4), 6, 2),
        ((5,), 6, 5),
        ((2, 4), 9, 2),
        ((6, 12), 24, 6),
        ((0, 6, 7), 6, 2),
    ],
)
def test_the_exit_is_the_trained_one_nearest_a_third(
    trained: tuple[int, ...], num_layers: int, expected: int
) -> None:
    assert default_exit(trained, num_layers) == expected


def test_trained_exits_are_the_checkpoints(tmp_path: Path) -> None:
    assert trained_exits(config(tmp_path).model) == ()
    assert trained_exits(config(tmp_path, [2, 4]).model) == (2, 4)
    assert trained_exits("nobody/has-this-in-the-cache") == ()
    for wrong in ("2", ["2"], [True], 2):
        with pytest.raises(LoadError, match=EXIT_LAYERS):
            trained_exits(config(tmp_path, wrong).model)


def test_prompt_lookup_is_always_there_and_nothing_is_guessed_unasked(tmp_path: Path) -> None:
    drafting = make_drafting(config(tmp_path), runner(6, no_exit))
    assert drafting.speculator.methods == ("off", "auto", "prompt_lookup")
    assert drafting.speculator.default == Speculation("off", 4)
    assert (drafting.exit, drafting.draft_model) == (None, None)
    assert str(drafting) == "off (requests may ask for auto, prompt_lookup)"


def test_early_exit_is_there_where_the_model_can_be_left(tmp_path: Path) -> None:
    asked: list[int] = []

    def leave(layer: int) -> Drafter:
        asked.append(layer)
        return Guesser()

    drafting = make_drafting(config(tmp_path, [3]), runner(6, leave))
    assert "early_exit" in drafting.speculator.methods
    assert (drafting.exit, asked) == (CalibratedExit(3), [3])
    make_drafting(config(tmp_path, [3], exit_layer=5), runner(6, leave))
    make_drafting(config(tmp_path, speculative="early_exit"), runner(2, leave))
    assert asked == [3, 5, 1]
    assert make_drafting(config(tmp_path), runner(2, leave)).exit is None


def test_the_exit_is_as_sure_as_the_checkpoint_says(tmp_path: Path) -> None:
    def written(thresholds: Any) -> EngineConfig:
        options = config(tmp_path, exit_layer=3)
        text = json.dumps({EXIT_THRESHOLDS: thresholds})
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        return options

    drafting = make_drafting(written({"2": {"0.9": 0.1}, "3": {"0.9": 0.5}}), runner(6, guesser))
    assert drafting.exit == CalibratedExit(3, {0.9: 0.5})
    broken = written({"3": 0.5})
    for unasked in (broken, replace(broken, exit_layer=None)):
        with pytest.raises(LoadError, match=f"^{EXIT_THRESHOLDS}"):
            make_drafting(unasked, runner(9, guesser))


def test_the_servers_own_way(tmp_path: Path) -> None:
    options = config(tmp_path, speculative="prompt_lookup", speculative_tokens=7)
    drafting = make_drafting(options, runner(2, no_exit))
    assert drafting.speculator.default == Speculation("prompt_lookup", 7)
    assert str(drafting) == "prompt_lookup, 7 tokens at a time"


@pytest.mark.parametrize(
    ("options", "num_layers", "message"),
    [
        ({"exit_layer": 6}, 6, r"^--exit-layer must be in \[1, 5\] .*got 6"),
        ({"speculative": "early_exit", "exit_layer": 9}, 6, r"^--exit-layer must be in \[1, 5\]"),
        ({"speculative": "early_exit"}, 1, "^--speculative early_exit: .* only one layer"),
    ],
)
def test_options_that_do_not_fit_the_model_are_named(
    tmp_path: Path, options: dict[str, Any], num_layers: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_drafting(config(tmp_path, **options), runner(num_layers, guesser))


@pytest.mark.parametrize("options", [{"speculative": "early_exit"}, {"exit_layer": 2}])
def test_early_exit_that_was_asked_for_must_be_possible(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(LoadError, match=r"^--speculative early_exit: its layers cannot be told"):
        make_drafting(config(tmp_path, **options), runner(6, no_exit))


@pytest.mark.parametrize("method", ["early_exit", "draft_model"])
def test_methods_that_are_not_there_are_refused_by_name(method: SpeculativeMethod) -> None:
    engine = make_engine(speculator=Speculator({"prompt_lookup": Guesser()}))
    request = make_request("a", [1, 2])
    engine.check(request)
    engine.check(replace(request, speculation=Speculation("prompt_lookup")))
    engine.check(replace(request, speculation=Speculation("off")))
    with pytest.raises(InvalidRequestError, match=f"{method} is not available") as caught:
        engine.check(replace(request, speculation=Speculation(method)))
    assert caught.value.param == "speculative.method"


def test_what_a_request_asks_for_is_prepared_before_it_is_added() -> None:
    one, other = Guesser(), Guesser()
    drafters: dict[SpeculativeMethod, Drafter] = {"early_exit": one, "draft_model": other}
    engine = make_engine(speculator=Speculator(drafters, Speculation("early_exit", 3)))
    request = make_request("a", [1, 2])
    engine.prepare(request)
    engine.prepare(replace(request, speculation=Speculation("draft_model", 6)))
    engine.prepare(replace(request, speculation=Speculation("off")))
    assert (one.prepared, other.prepared) == ([3], [4])


def test_the_runner_gets_ready_for_checks_and_exits() -> None:
    runner, guesser_ = make_runner(), Guesser()
    drafters: dict[SpeculativeMethod, Drafter] = {"early_exit": guesser_}
    engine = make_engine(runner, speculator=Speculator(drafters, Speculation("early_exit", 3)))
    request = make_request("a", [1, 2])
    engine.prepare(replace(request, approximation=Approximation(2, 0.5)))
    assert (runner.exits, runner.checks, guesser_.prepared) == ([2], [], [])
    engine.prepare(replace(request, speculation=Speculation("off")))
    assert (runner.exits, runner.checks) == ([2], [])
    engine.prepare(request)
    engine.prepare_default()
    assert (runner.exits, set(runner.checks), set(guesser_.prepared)) == ([2], {3}, {3})


@pytest.mark.parametrize("method", ["off", "early_exit", "auto"])
def test_nothing_is_guessed_where_tokens_leave_early(method: SpeculativeMethod) -> None:
    """Its room is for the exit; the server's own way is for the others."""
    drafter = Guesser()
    speculator = Speculator({"early_exit": drafter}, Speculation(method, 3))
    engine = make_engine(speculator=speculator)
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 9, "ignore_eos": True}
    early = make_request("a", [1, 2], **greedy)
    engine.add_request(replace(early, approximation=Approximation(2, 0.5)))
    while engine.has_work:
        engine.step()
    (receipt,) = engine.drain()
    assert (receipt.drafted_tokens, receipt.approximate) == (0, True)
    assert sum(arm.num_steps for arms in engine.stats().arms.values() for arm in arms) == 0


@pytest.mark.parametrize(
    ("sampling", "number"),
    [
        ({"temperature": 0}, EXIT_RUN - 1),
        ({"temperature": 0, "stop_token_ids": (5,), "stop": ("x",)}, EXIT_RUN - 1),
        ({"temperature": 0.7}, 0),
        ({"temperature": 0, "presence_penalty": 0.1}, 0),
        ({"temperature": 0, "logit_bias": {3: 1.0}}, 0),
        ({"temperature": 0, "min_tokens": 2}, 0),
        ({"temperature": 0, "logprobs": 0}, 0),
    ],
)
def test_several_tokens_leave_where_the_best_is_taken_and_no_more_is_asked(
    sampling: dict[str, Any], number: int
) -> None:
    request = replace(make_request("a", [1], **sampling), approximation=Approximation(2, 0.5))
    (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=64)
    assert Speculator({}).num_drafts(seq) == number


@pytest.mark.parametrize(
    ("usual", "exits", "drafts"),
    [
        (1, {1}, {1, 2}),
        (4, {2, 4}, {4, 8}),
        (16, {2, 16}, {16}),
    ],
)
def test_all_that_auto_takes_is_prepared(usual: int, exits: set[int], drafts: set[int]) -> None:
    one, other = Guesser(), Guesser()
    drafters: dict[SpeculativeMethod, Drafter] = {"early_exit": one, "draft_model": other}
    Speculator(drafters, Speculation("off", usual)).prepare(Speculation("auto"))
    assert (set(one.prepared), set(other.prepared)) == (exits, drafts)
