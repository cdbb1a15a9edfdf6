"""Ways of guessing side by side: `python -m evals.studies.speculation`.

One real server with every drafter; each request says how it wants to be decoded, so methods take
turns on the same process, model and prompts (see `speculation_prompts`); greedy, so all methods
give the same tokens, which is counted. `approximate`, where it is asked for, need not. Joules are
what the server puts into `usage.energy`.

Not covered: sampling (see the tests).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evals.entry import finish
from evals.lab import RESULTS, Burst, joined, running_server, save, send_burst
from evals.studies.ratios import paired_ratio
from evals.studies.speculation_prompts import prompts
from evals.studies.speculation_report import APPROXIMATE, draw, markdown

console = Console(stderr=True)
METHODS = ("off", "prompt_lookup", "early_exit", "draft_model", "draft_model longer", "auto")
# Guesses that cost little are made twice as many.
_TWICE = ("prompt_lookup", "draft_model longer")
BATCHES = (1, 4, 16, 32)
KINDS = ("stories", "edits", "extraction")
_LEAST_REQUESTS = 8


@dataclass(slots=True)
class Cell:
    """What one method did with one kind of work at one batch size, round by round."""

    bursts: list[Burst] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> list[float]:
        """Speed, over all requests of a round."""
        return [burst.tokens_per_s for burst in self.bursts]

    @property
    def joules_per_token(self) -> list[float]:
        """Active joules, over all requests of a round."""
        return [burst.total("active_joules") / burst.tokens for burst in self.bursts]

    def summary(self) -> dict[str, Any]:
        """Medians, and shares over all rounds."""
        drafted = sum(burst.total("drafted_tokens") for burst in self.bursts)
        accepted = sum(burst.total("accepted_tokens") for burst in self.bursts)
        tokens = sum(burst.tokens for burst in self.bursts)
        return {
            "tokens_per_s": statistics.median(self.tokens_per_s),
            "active_joules_per_token": statistics.median(self.joules_per_token),
            "draft_share_of_joules": _share(self.bursts, "draft_joules"),
            "acceptance": accepted / drafted if drafted else None,
            "tokens_per_step": tokens / (tokens - accepted),
        }


def _share(bursts: Sequence[Burst], name: str) -> float:
    active_j = sum(burst.total("active_joules") for burst in bursts)
    return sum(burst.total(name) for burst in bursts) / active_j


def bodies_of(settings: Settings, questions: Sequence[str], method: str) -> list[dict[str, Any]]:
    """Greedy requests that say how they want to be decoded."""
    return [
        {
            "model": settings.served,
            **settings.asked(question),
            "temperature": 0,
            "max_tokens": settings.max_tokens,
            **settings.way(method),
        }
        for question in questions
    ]


def one_round(
    server: tuple[str, int],
    cells: dict[tuple[str, int, str], Cell],
    settings: Settings,
    number: int,
) -> None:
    """Every kind, batch size and method once; methods change places from round to round."""
    url, pid = server
    for kind in settings.kinds:
        for batch in settings.batches:
            waves = max(1, _LEAST_REQUESTS // batch)
            questions = prompts(kind, waves * batch, number * 100 + batch)
            at = number % len(settings.methods)
            for method in settings.methods[at:] + settings.methods[:at]:
                bodies = bodies_of(settings, questions, method)
                parts = [
                    send_burst(url, pid, bodies[i : i + batch], path=settings.path)
                    for i in range(0, len(bodies), batch)
                ]
                cells.setdefault((kind, batch, method), Cell()).bursts.append(joined(parts))


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    served: str
    methods: tuple[str, ...]
    batches: tuple[int, ...]
    num_tokens: int
    max_tokens: int = 128
    agreement: float = 0.0
    chats: bool = True

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of work."""
        return KINDS if self.chats else ("continuing",)

    @property
    def path(self) -> str:
        """Where requests go."""
        return "/v1/chat/completions" if self.chats else "/v1/completions"

    def asked(self, question: str) -> dict[str, Any]:
        """A question in a body."""
        if not self.chats:
            return {"prompt": question}
        return {"messages": [{"role": "user", "content": question}]}

    def way(self, method: str) -> dict[str, Any]:
        """What a body says of a method."""
        if method == APPROXIMATE:
            return {APPROXIMATE: {"agreement": self.agreement}}
        if method in ("off", "auto"):
            return {"speculative": {"method": method}}
        count = self.num_tokens * (2 if method in _TWICE else 1)
        return {"speculative": {"method": method.split()[0], "num_tokens": count}}


def _differing(cells: dict[tuple[str, int, str], Cell], key: tuple[str, int, str]) -> int:
    """Answers that are not those of plain decoding to the same prompts in the same batch."""
    kind, batch, _ = key
    plain = cells[kind, batch, "off"].bursts
    pairs = zip(plain, cells[key].bursts, strict=True)
    return sum(
        _said(a) != _said(b)
        for one, other in pairs
        for a, b in zip(one.bodies, other.bodies, strict=True)
    )


def _said(body: dict[str, Any]) -> Any:
    choice = body["choices"][0]
    return choice.get("message", choice.get("text"))


def figures(cells: dict[tuple[str, int, str], Cell], settings: Settings) -> dict[str, Any]:
    """Each cell beside plain decoding, round by round."""
    found: dict[str, Any] = {}
    for key, cell in cells.items():
        kind, batch, method = key
        off = cells[kind, batch, "off"]
        found.setdefault(kind, {}).setdefault(str(batch), {})[method] = cell.summary() | {
            "speed_over_off": paired_ratio(cell.tokens_per_s, off.tokens_per_s),
            "joules_over_off": paired_ratio(cell.joules_per_token, off.joules_per_token),
            "answers": sum(len(burst.bodies) for burst in cell.bursts),
            "answers_that_differ": _differing(cells, key),
        }
    about = {"num_tokens": settings.num_tokens, "max_tokens": settings.max_tokens}
    return {**about, "agreement": settings.agreement or None, "kinds": found}


def main(
    model: Annotated[str, typer.Option(help="Model folder or 'bundled'.")] = "bundled",
    draft_model: Annotated[str, typer.Option(help="Draft model, or '' for none.")] = "",
    rounds: Annotated[int, typer.Option(help="Rounds of all methods.")] = 5,
    num_tokens: Annotated[int, typer.Option(help="Guesses per step, at most.")] = 4,
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,4,16,32",
    chats: Annotated[bool, typer.Option(help="Whether the model has a chat template.")] = True,
    agreement: Annotated[float, typer.Option(help="Of approximate answers; 0: none.")] = 0.0,
    quantize: Annotated[str, typer.Option(help="--quantize of the server.")] = "none",
    name: Annotated[str, typer.Option(help="Name of the result.")] = "speculation",
) -> None:
    """Measure the methods, interleaved."""
    methods = tuple(m for m in METHODS if draft_model or not m.startswith("draft_model"))
    methods += (APPROXIMATE,) if agreement else ()
    served = "bundled" if model == "bundled" else Path(model).resolve().name
    sizes = tuple(int(size) for size in batches.split(","))
    settings = Settings(served, methods, sizes, num_tokens, agreement=agreement, chats=chats)
    options = ["--speculative", "auto", "--speculative-tokens", str(num_tokens)]
    options += ["--draft-model", draft_model] if draft_model else []
    options += ["--quantize", quantize]
    cells: dict[tuple[str, int, str], Cell] = {}
    with tempfile.TemporaryDirectory() as folder:
        running = running_server(model, Path(folder), *options)
        with running as server:
            one_round(server, {}, settings, -1)
            for number in range(rounds):
                one_round(server, cells, settings, number)
                console.print(f"round {number + 1}/{rounds}")
    about = {"model": Path(model).name, "quantize": quantize, "rounds": rounds}
    result = {**about, **figures(cells, settings)}
    path = save(name, result, module="speculation")
    draw(result, RESULTS / f"{name}.svg")
    (RESULTS / f"{name}.md").write_text(markdown(result), encoding="utf-8")
    console.print(markdown(result))
    console.print(f"written to {path}")


if __name__ == "__main__":
    finish("evals.studies.speculation", lambda: typer.run(main))
