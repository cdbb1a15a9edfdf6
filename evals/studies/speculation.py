"""Ways of decoding side by side: `python -m evals.studies.speculation`.

Question: which kind of draft tokens is faster and takes fewer joules than plain decoding? Arms: one
real server with every drafter; each request says how it wants to be decoded, so methods take turns
on the same process, model and prompts (see `speculation_prompts`). Measure: tokens per second,
active joules of `usage.energy`, draft tokens that were accepted. Greedy, so all methods give the
same tokens, which is counted; `approximate`, where it is asked for, need not.

Not covered: sampling (see the tests).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.studies import study
from evals.studies.load import CHATS, COMPLETIONS, Body, Burst, Server, joined, serve
from evals.studies.ratios import paired_ratio
from evals.studies.speculation_prompts import prompts
from evals.tables import rows_of, table, value
from greenllm.model.options import own_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = ("off", "prompt_lookup", "early_exit", "draft_model", "draft_model longer", "auto")
APPROXIMATE = "approximate"
# Draft tokens that cost little are twice as many.
_TWICE = ("prompt_lookup", "draft_model longer")
KINDS = ("stories", "edits", "extraction")
_LEAST_REQUESTS = 8
_RATIOS = ("speed_over_off", "joules_over_off")
Cell = Sequence[Burst]
Cells = Mapping[tuple[str, int, str], Cell]


def page(result: study.Result) -> str:
    """One row for each kind of work, batch size and method; ratios are medians of paired ones.

    Approximate answers have no draft tokens, so their tokens per step say nothing.
    """
    columns = {
        "work": value("work"),
        "batch": value("batch"),
        "method": value("method"),
        "tok/s": value("tokens_per_s", ",.0f"),
        "x off": value("speed_over_off.median", ".2f"),
        "mJ/token (active)": value("active_joules_per_token", ".3f", 1e3),
        "joules x off": value("joules_over_off.median", ".2f"),
        "accepted of guesses": value("acceptance", ".0%"),
        "tokens/step": value("tokens_per_step", ".2f"),
        "answers that differ": lambda row: f"{row['answers_that_differ']} of {row['answers']}",
    }
    return table(columns, _rows(result), unknown="") + "\n"


def _rows(result: study.Result) -> Iterator[dict[str, Any]]:
    for row in rows_of(result["kinds"], "work", "batch", "method"):
        yield {**row, "tokens_per_step": None} if row["method"] == APPROXIMATE else row


def plot(figure: Figure, result: study.Result) -> None:
    """Speed and joules per token over plain decoding, by batch size; one panel each per kind."""
    kinds = result["kinds"]
    figure.set_size_inches(4.2 * len(kinds), 6)
    panels = figure.subplots(len(_RATIOS), len(kinds), squeeze=False)
    for (row, name), (column, kind) in product(enumerate(_RATIOS), enumerate(kinds)):
        axes = panels[row][column]
        _panel(axes, kinds[kind], name)
        study.labelled(
            axes,
            ticks=[int(size) for size in kinds[kind]],
            legend=not row and not column,
            xlabel="requests in the batch",
            title=f"{kind}: {name.replace('_', ' ')}",
        )
    figure.suptitle(f"Draft tokens, {result['model']} (modelled joules)")


def _panel(axes: Axes, batches: Mapping[str, Any], name: str) -> None:
    sizes = [int(size) for size in batches]
    for method in next(iter(batches.values())):
        found = [methods[method][name] for methods in batches.values()]
        reach = [[one["median"] - one["q1"] for one in found],
                 [one["q3"] - one["median"] for one in found]]  # fmt: skip
        medians = [one["median"] for one in found]
        axes.errorbar(sizes, medians, reach, marker="o", capsize=2, label=method)


STUDY = study.Study("speculation", page, plot)


@dataclass(frozen=True, slots=True)
class Settings:
    """What requests ask for."""

    num_tokens: int
    agreement: float = 0.0
    chats: bool = True
    max_tokens: int = 128

    @property
    def path(self) -> str:
        """Where requests go."""
        return CHATS if self.chats else COMPLETIONS

    def body(self, model: str, question: str, method: str) -> Body:
        """A greedy request that says how it wants to be decoded."""
        asked: Body = {"messages": [{"role": "user", "content": question}]}
        return {
            "model": model,
            **(asked if self.chats else {"prompt": question}),
            "temperature": 0,
            "max_tokens": self.max_tokens,
            **self.way(method),
        }

    def way(self, method: str) -> dict[str, Any]:
        """What a body says of a method."""
        if method == APPROXIMATE:
            return {APPROXIMATE: {"agreement": self.agreement}}
        if method in ("off", "auto"):
            return {"speculative": {"method": method}}
        count = self.num_tokens * (2 if method in _TWICE else 1)
        return {"speculative": {"method": method.split()[0], "num_tokens": count}}


def turn(server: Server, settings: Settings, key: tuple[str, int, str], number: int) -> Burst:
    """One method on one kind of work; prompts depend on kind, batch size and round only."""
    kind, batch, method = key
    waves = max(1, _LEAST_REQUESTS // batch)
    questions = prompts(kind, waves * batch, number * 100 + batch)
    bodies = [settings.body(server.model, question, method) for question in questions]
    parts = (bodies[i : i + batch] for i in range(0, len(bodies), batch))
    return joined([server.burst(part, path=settings.path) for part in parts])


def _speeds(cell: Cell) -> list[float]:
    return [burst.tokens / burst.wall_s for burst in cell]


def _joules(cell: Cell) -> list[float]:
    return [burst.total("active_joules") / burst.tokens for burst in cell]


def _summary(cell: Cell, off: Cell) -> dict[str, Any]:
    """Medians, shares over all rounds, and ratios to plain decoding round by round."""
    whole = joined(cell)
    drafted, accepted = whole.total("drafted_tokens"), whole.total("accepted_tokens")
    return {
        "tokens_per_s": statistics.median(_speeds(cell)),
        "active_joules_per_token": statistics.median(_joules(cell)),
        "draft_share_of_joules": whole.total("draft_joules") / whole.total("active_joules"),
        "acceptance": accepted / drafted if drafted else None,
        "tokens_per_step": whole.tokens / (whole.tokens - accepted),
        "speed_over_off": paired_ratio(_speeds(cell), _speeds(off)),
        "joules_over_off": paired_ratio(_joules(cell), _joules(off)),
        "answers": len(whole.bodies),
        "answers_that_differ": sum(
            _said(a) != _said(b) for a, b in zip(whole.bodies, joined(off).bodies, strict=True)
        ),
    }


def _said(body: Body) -> Any:
    choice = body["choices"][0]
    return choice.get("message", choice.get("text"))


def figures(cells: Cells, settings: Settings) -> dict[str, Any]:
    """Each cell beside plain decoding of the same prompts in the same batch."""
    found: dict[str, Any] = {}
    for (kind, batch, method), cell in cells.items():
        methods = found.setdefault(kind, {}).setdefault(str(batch), {})
        methods[method] = _summary(cell, cells[kind, batch, "off"])
    about = {"num_tokens": settings.num_tokens, "max_tokens": settings.max_tokens}
    return {**about, "agreement": settings.agreement or None, "kinds": found}


def main(
    model: study.Model = "bundled",
    draft_model: study.DraftModel = "",
    rounds: study.Rounds = 5,
    num_tokens: Annotated[int, typer.Option(help="Draft tokens per step, at most.")] = 4,
    batches: study.Batches = "1,4,16,32",
    chats: Annotated[bool, typer.Option(help="Whether the model has a chat template.")] = True,
    agreement: Annotated[float, typer.Option(help="Of approximate answers; 0: none.")] = 0.0,
    quantize: Annotated[str, typer.Option(help="--quantize of the server.")] = "none",
    name: study.Name = STUDY.name,
) -> None:
    """Measure the methods, interleaved."""
    methods = [m for m in METHODS if draft_model or not m.startswith("draft_model")]
    methods += [APPROXIMATE] if agreement else []
    sizes = study.split_numbers(batches, "--batches")
    settings = Settings(num_tokens, agreement, chats)
    options = ["--speculative", "auto", "--speculative-tokens", str(num_tokens)]
    options += ["--draft-model", draft_model] if draft_model else []
    kinds = KINDS if chats else ("continuing",)
    groups = ([(*work, method) for method in methods] for work in product(kinds, sizes))
    with serve(model, *options, "--quantize", quantize) as server:

        def ask(key: tuple[str, int, str], number: int) -> Burst:
            return turn(server, settings, key, number)

        cells = study.interleave(ask, rounds, *groups, warm_up=True)
    about = {"model": own_name(model), "quantize": quantize, "rounds": rounds}
    STUDY.report({**about, **figures(cells, settings)}, name)


if __name__ == "__main__":
    STUDY.run(main)
