"""The bundled model's training code: the same arithmetic as transformers, exits, resuming, cards.

Contract: untrained models of a few thousand parameters, seconds in all. Not covered: what
training reaches, which the cards report.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from evals.studies import study
from evals.studies.bundled import exits, loop, measure, network
from evals.studies.bundled.card import render_card, render_draft_card
from evals.studies.bundled.data import Source
from evals.studies.bundled.effort import Clock, Effort, append_row, keep_rows, modelled_j, read_rows
from evals.studies.bundled.optimizer import Optimizer, learning_rate
from evals.studies.bundled.packing import Batch, make_batch, pack_rows
from evals.studies.bundled.record import save_model
from evals.studies.bundled.report import plot
from evals.studies.bundled.text import Library, blocks, is_held_out_block, pieces, read_library
from evals.studies.bundled.tokenizer import Encoded

MODELS = Path(__file__).parents[3] / "greenllm" / "model"
VOCABULARY = 96
SHAPE = network.Shape(layers=4, hidden=64, heads=2, inner=128)


@pytest.fixture
def model() -> LlamaForCausalLM:
    """An untrained model."""
    torch.manual_seed(1)
    return network.new_model(SHAPE, VOCABULARY, (2, 3))


def conversation(length: int, seed: int = 0) -> Encoded:
    """Random ids, all of them scored."""
    rng = random.Random(seed)
    return Encoded(tuple(rng.randrange(4, VOCABULARY) for _ in range(length)), (1.0,) * length)


def one_batch(seed: int = 0) -> Batch:
    """Two rows of three conversations."""
    items = [conversation(n, seed + n) for n in (20, 11, 25)]
    return make_batch(pack_rows(iter(items), 2, 32), 32, pad=3)


def test_the_forward_pass_is_that_of_transformers(model: LlamaForCausalLM) -> None:
    """Each conversation of a packed row gives what it gives alone."""
    batch = one_batch()
    reading = measure.read_batch(model, batch, ())
    states = network.hidden_states(model, batch, network.make_frame(batch, torch.float32), ())
    logits = network.read_logits(
        states[4], model.model.norm.weight, model.lm_head.weight, torch.float32
    )
    for row, start, stop in ((0, 0, 20), (0, 20, 31), (1, 0, 25)):
        alone = model(batch.ids[row : row + 1, start:stop]).logits[0]
        torch.testing.assert_close(logits[row, start:stop], alone, atol=1e-4, rtol=1e-3)
    assert len(reading.targets) == 19 + 10 + 24


def test_an_exit_reads_the_state_after_its_layer(model: LlamaForCausalLM) -> None:
    batch = one_batch()
    frame = network.make_frame(batch, torch.float32)
    states = network.hidden_states(model, batch, frame, (1, 2))
    skipped = network.hidden_states(model, batch, frame, (), skipped={2, 3})
    assert set(states) == {1, 2, 4}
    torch.testing.assert_close(states[2], skipped[4])


def test_exits_are_trained_at_a_third_and_a_half() -> None:
    layers = 12
    used = [exits.exits_of_step(step, layers) for step in range(40)]
    assert exits.exit_layers(layers) == (2, 3, 4, 6, 8, 9)
    assert set(exits.exit_layers(layers)) == {layer for step in used for layer in step}
    assert all(len(step) == 2 for step in used)
    assert sum(step == (4, 6) for step in used) == 20
    assert all({4, 6} & set(step) for step in used)


def test_deeper_layers_are_skipped_more_often() -> None:
    rng = random.Random(1)
    drawn = [exits.skipped_layers(rng, 12, 0.2) for _ in range(3_000)]
    counts = [sum(layer in skipped for skipped in drawn) for layer in range(12)]
    assert counts[0] == 0
    assert counts[3] < counts[11]
    assert counts[11] == pytest.approx(600, rel=0.2)


def test_the_exit_loss_weighs_later_exits_more(model: LlamaForCausalLM) -> None:
    plan = exits.Plan((1, 2), frozenset())
    losses = exits.step_losses(model, one_batch(), plan, dtype=torch.float32)
    expected = losses[4] + 0.5 * (losses[1] * 0.25 + losses[2] * 0.5)
    assert set(losses) == {1, 2, 4}
    torch.testing.assert_close(exits.total_loss(losses, 0.5), expected)


def test_the_whole_model_agrees_with_itself(model: LlamaForCausalLM) -> None:
    readings = [measure.read_batch(model, one_batch(), (2,))]
    shares = measure.agreement(readings)
    assert shares[4] == 1.0
    assert 0 <= shares[2] <= 1
    assert measure.follows(readings, readings) == 1.0


def test_every_held_out_item_is_scored_once() -> None:
    items = [conversation(n) for n in (900, 700, 60, 300, 300, 1024, 5, 1025)]
    batches = list(measure.packed_batches(items, pad=3))
    scored = sum(int((batch.weights == 1.0).sum()) for batch in batches)
    assert scored == sum(len(i.ids) - 1 for i in items if len(i.ids) <= 1024)


def tiny_job(folder: Path, model: LlamaForCausalLM, tokens: int) -> loop.Job:
    """A run of a few steps."""

    def loss(batch: Batch, step: int) -> tuple[torch.Tensor, float]:
        losses = exits.step_losses(model, batch, exits.Plan((2,), frozenset()), dtype=torch.float32)
        return exits.total_loss(losses, 0.5), float(losses[4].detach())

    def check() -> Mapping[str, float]:
        return {"held_out_loss": 1.0, "agree_2": 0.5}

    return loop.Job(folder, tokens, model, Optimizer(model, 1e-3), one_batch, loss, check)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, model: LlamaForCausalLM) -> None:
    """Stopped after some steps and started anew, it ends with the weights of one run."""
    whole = loop.run(tiny_job(tmp_path / "whole", _copy(model, tmp_path / "whole"), 600))
    folder = tmp_path / "parts"
    first = tiny_job(folder, _copy(model, folder), 600)
    effort, clock = Effort(), Clock()
    for _ in range(4):
        effort = loop.update(first, effort, clock)
    loop.save_checkpoint(first, effort)
    second = tiny_job(folder, _copy(model, folder), 600)
    ended = loop.run(second)
    assert (ended.steps, ended.tokens) == (whole.steps, whole.tokens)
    kept = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["model"]
    for name, value in second.model.state_dict().items():
        torch.testing.assert_close(value, kept[name])


def _copy(model: LlamaForCausalLM, folder: Path) -> LlamaForCausalLM:
    """Another model with the same weights, and its folder."""
    folder.mkdir(exist_ok=True)
    other = network.new_model(SHAPE, VOCABULARY, (2, 3))
    other.load_state_dict(model.state_dict())
    return other


def test_a_run_ends_with_its_tokens_and_a_row(tmp_path: Path, model: LlamaForCausalLM) -> None:
    job = tiny_job(tmp_path, model, 300)
    effort = loop.run(job)
    [row] = read_rows(job.curve)
    assert effort.tokens >= 300 > effort.tokens - one_batch().tokens
    assert row["tokens"] == effort.tokens
    assert row["agree_2"] == 0.5


def test_later_rows_are_dropped_on_resuming(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    for step in (1, 2, 3):
        append_row(path, {"step": step, "loss": 0.5})
    keep_rows(path, 2)
    assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(share / 100, 1.0) for share in range(101)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[1] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)


def test_energy_follows_from_the_times() -> None:
    assert modelled_j(Effort(cpu_s=100, wall_s=50)) == pytest.approx(100 * 1.5 + 50 * 2 * 0.46)


def test_a_saved_model_loads_with_its_exit_layers(tmp_path: Path, model: LlamaForCausalLM) -> None:
    model.config.greenllm_exit_layers = [1, 2]
    save_model(model, tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(str(tmp_path))
    assert loaded.config.greenllm_exit_layers == [1, 2]
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight)


def test_text_is_cut_between_sentences_and_split_by_block(tmp_path: Path) -> None:
    sentences = [f"Sentence number {n} says nothing at all about the others." for n in range(900)]
    (tmp_path / "book.txt").write_text("\n".join(sentences))
    library = read_library(tmp_path)
    cut = pieces(" ".join(sentences))
    assert " ".join(cut) == " ".join(sentences)
    assert all(piece.endswith(".") and len(piece) <= 420 for piece in cut)
    assert {*library.training, *library.held_out} == set(blocks(" ".join(sentences)))
    assert all(map(is_held_out_block, library.held_out))
    assert not any(map(is_held_out_block, library.training))
    assert read_library(None) == Library()


class Letters:
    """An encoder that knows nothing of tokens."""

    def text(self, text: str) -> Encoded:
        """Many ids."""
        return conversation(50)

    def conversation(self, example: object) -> Encoded:
        """Some ids."""
        return conversation(30, seed=hash(example) % 1000)


def test_a_step_reads_the_same_data_again() -> None:
    source = Source(Letters(), Library((("a", "b"),), ()), 5, 3)  # type: ignore[arg-type]
    again = replace(source)
    assert torch.equal(source.batch(3).ids, again.batch(3).ids)
    assert source.batch(3).ids.shape == (16, 256)
    assert source.batch(9).ids.shape == (4, 1024)
    assert not torch.equal(source.batch(3).ids, source.batch(4).ids)


def test_the_same_curve_gives_the_same_picture(tmp_path: Path) -> None:
    rows = [
        {"tokens": 1e6 * n, "loss": 2 / n, "held_out_loss": 2.1 / n, "agree_4": 1 - 0.5 / n}
        for n in (1, 2, 3)
    ]
    for name in ("a.svg", "b.svg"):
        study.draw(plot, {"rows": rows}, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "exit after layer 4" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("folder", "render"), [("bundled", render_card), ("bundled_draft", render_draft_card)]
)
def test_cards_say_what_the_training_record_says(
    folder: str, render: Callable[[Mapping[str, Any]], str]
) -> None:
    place = MODELS / folder
    record = json.loads((place / "training.json").read_text())
    assert (place / "README.md").read_text() == render(record)


def test_a_card_names_the_text_and_the_tasks_that_fail() -> None:
    record = json.loads((MODELS / "bundled" / "training.json").read_text())
    weak = {"held_out": {"copy": {"right": 1, "asked": 4}, "sort": {"right": 2, "asked": 4}}}
    card = render_card({**record, **weak, "text_files": []})
    assert "the rest is\n  not used." in card
    assert "War and Peace*" not in card
    assert "more often than not: copy." in card
