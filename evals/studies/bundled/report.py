"""Score a finished model and its draft, and write their records, curves and cards.

`python -m evals.studies.bundled.report --model FOLDER --draft FOLDER --text FOLDER --unseen FOLDER`

Contract: what training recorded is kept, scores are made anew, and the cards follow from the
records alone. Not covered: speed, which depends on the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from evals.studies import study
from evals.studies.bundled import measure
from evals.studies.bundled.card import render_card, render_draft_card
from evals.studies.bundled.effort import read_rows
from evals.studies.bundled.evaluate import finished_stories, sample_answers, score_all
from evals.studies.bundled.loop import CURVE
from evals.studies.bundled.record import write_json
from evals.studies.bundled.text import Library, blocks, read_library
from evals.studies.bundled.tokenizer import Encoded, Encoder, load_tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT_SEED: Final = 1
HELD_OUT_SIZE: Final = 200
AGREEMENT_SIZE: Final = 40
TEXT_BLOCKS: Final = 160
WEIGHTS: Final = "model.safetensors"


@dataclass(frozen=True)
class Trained:
    """A finished model with its tokenizer."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast


@dataclass(frozen=True)
class Scored:
    """Held-out conversations and texts, as ids, and the bytes of each kind of text."""

    answers: Sequence[Encoded]
    texts: Mapping[str, Sequence[Encoded]]
    text_bytes: Mapping[str, int]
    pad: int

    def readings(
        self, model: LlamaForCausalLM, items: Sequence[Encoded], exits: Sequence[int] = ()
    ) -> list[measure.Reading]:
        """What a model expects on some of the items."""
        batches = measure.packed_batches(items, self.pad)
        return [measure.read_batch(model, batch, exits) for batch in batches]

    def kinds(self) -> dict[str, Sequence[Encoded]]:
        """Answers and each kind of text, by name."""
        return {"answers": self.answers} | dict(self.texts)


def load(folder: Path) -> Trained:
    """A finished model from its folder."""
    return Trained(LlamaForCausalLM.from_pretrained(str(folder)).eval(), load_tokenizer(folder))


def unseen_library(folder: Path | None) -> Library:
    """Text that no training ever read, all of it open to scoring."""
    files = sorted(folder.glob("*.txt")) if folder else []
    cut = (block for path in files for block in blocks(path.read_text(encoding="utf-8")))
    return Library(held_out=tuple(cut))


def held_out(tokenizer: PreTrainedTokenizerFast, text: Path | None, unseen: Path | None) -> Scored:
    """Everything the models are measured on."""
    encoder = Encoder(tokenizer, other_weight=0.1)
    libraries = {"held_out_text": read_library(text), "unseen_text": unseen_library(unseen)}
    chosen = {
        name: [" ".join(block) for block in library.held_out[:TEXT_BLOCKS]]
        for name, library in libraries.items()
        if library.held_out
    }
    return Scored(
        answers=measure.held_out_answers(encoder, AGREEMENT_SIZE, HELD_OUT_SEED),
        texts={name: [encoder.text(t) for t in texts] for name, texts in chosen.items()},
        text_bytes={name: sum(len(t.encode()) for t in ts) for name, ts in chosen.items()},
        pad=int(tokenizer.convert_tokens_to_ids("<|pad|>")),
    )


def perplexities(model: LlamaForCausalLM, scored: Scored) -> dict[str, dict[str, float]]:
    """Perplexity on answers and on each kind of text."""
    found: dict[str, dict[str, float]] = {}
    for name, items in scored.kinds().items():
        readings = scored.readings(model, items)
        found[name] = measure.text_quality(readings, scored.text_bytes.get(name, 0))
    return found


def exit_agreement(model: LlamaForCausalLM, scored: Scored) -> dict[str, dict[str, float]]:
    """Agreement of every trained exit with the whole model."""
    exits: list[int] = model.config.greenllm_exit_layers
    found: dict[str, dict[str, float]] = {}
    for name, items in scored.kinds().items():
        shares = measure.agreement(scored.readings(model, items, exits))
        found[name] = {str(layer): round(shares[layer], 4) for layer in exits}
    return found


def draft_agreement(pair: tuple[Trained, Trained], scored: Scored) -> dict[str, float]:
    """How often the draft expects what the model expects."""
    model, draft = (trained.model for trained in pair)
    return {
        name: round(
            measure.follows(scored.readings(draft, items), scored.readings(model, items)), 4
        )
        for name, items in scored.kinds().items()
    }


def size(folder: Path, model: LlamaForCausalLM) -> dict[str, object]:
    """Parameters, and bytes of the weights."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": (folder / WEIGHTS).stat().st_size,
    }


def answer_quality(trained: Trained) -> dict[str, object]:
    """Held-out scores and some answers."""
    model, tokenizer = trained.model, trained.tokenizer
    scores = score_all(model, tokenizer, HELD_OUT_SIZE, HELD_OUT_SEED)
    stories = finished_stories(model, tokenizer)
    return {
        "held_out_seed": HELD_OUT_SEED,
        "held_out": {s.task: {"right": s.right, "asked": s.asked} for s in scores},
        "stories": {"ended_by_themselves": stories.right, "asked": stories.asked},
        "samples": sample_answers(model, tokenizer),
    }


def write_report(folder: Path, found: Mapping[str, object], card: str) -> None:
    """Write record, curve and card of one folder."""
    write_json(folder / "training.json", found)
    study.draw(plot, {"rows": read_rows(folder / CURVE)}, folder / "curve.svg")
    (folder / "README.md").write_text(card)


def known(folder: Path) -> dict[str, object]:
    """What a folder's record says so far."""
    content: dict[str, object] = json.loads((folder / "training.json").read_text())
    return content


def report_model(folder: Path, trained: Trained, scored: Scored) -> None:
    """Score and describe the model."""
    found = known(folder) | size(folder, trained.model) | answer_quality(trained)
    found |= {"exits": exit_agreement(trained.model, scored)}
    found |= {"perplexity": perplexities(trained.model, scored)}
    write_report(folder, found, render_card(found))


def report_draft(folder: Path, model: Trained, scored: Scored) -> None:
    """Score and describe the draft."""
    draft = load(folder)
    found = known(folder) | size(folder, draft.model)
    found |= {"agreement": draft_agreement((model, draft), scored)}
    found |= {"perplexity": perplexities(draft.model, scored)}
    write_report(folder, found, render_draft_card(found))


def plot(figure: Figure, curve: study.Result) -> None:
    """Loss and agreement over millions of tokens."""
    rows = curve["rows"]
    millions = [row["tokens"] / 1e6 for row in rows]
    agreements = [name for name in rows[0] if name.startswith("agree_")]
    losses = {"loss": "training (smoothed)", "held_out_loss": "held out"}
    loss_lines = {label: (millions, [row[name] for row in rows]) for name, label in losses.items()}
    agreement_lines = {
        _label(name): (millions, [100 * row[name] for row in rows]) for name in agreements
    }
    figure.set_size_inches(7.2, 2.7)
    left, right = figure.subplots(1, 2)
    study.curves(left, loss_lines, xlabel="million tokens", ylabel="loss, nats per token",
                 ylim=(0, None))  # fmt: skip
    study.curves(right, agreement_lines, xlabel="million tokens", ylabel="same likeliest token, %",
                 ylim=(0, 100))  # fmt: skip


def _label(column: str) -> str:
    """What an agreement column shows."""
    name = column.removeprefix("agree_")
    return f"exit after layer {name}" if name.isdigit() else "draft with the model"


def main(
    model: Annotated[Path, typer.Option(help="Folder of the finished model.")],
    draft: Annotated[Path | None, typer.Option(help="Folder of its draft.")] = None,
    text: Annotated[Path | None, typer.Option(help="The text of the training run.")] = None,
    unseen: Annotated[Path | None, typer.Option(help="*.txt that training never read.")] = None,
) -> None:
    """Score the finished model, and its draft where one is given."""
    trained = load(model)
    scored = held_out(trained.tokenizer, text, unseen)
    report_model(model, trained, scored)
    if draft is not None:
        report_draft(draft, trained, scored)


if __name__ == "__main__":
    typer.run(main)
