"""The frame of all studies: their command lines, rounds, results, tables and plots.

A study is a module with a `Study` that says how its result is shown, and a command that measures
and saves it. A result is written as `NAME.json`, with its command, machine and date; as `NAME.md`
where it has a page, and as `NAME.svg` where it has a plot. Page and plot are made of what the JSON
says and nothing else, so that they can be made again. What is compared takes turns, round by round.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from evals.entry import BenchError, finish, origin
from greenllm.model.info import LoadError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
MODEL_HINT = "`python -m evals.studies.peers model` makes .peers/models/m135"
Result = Mapping[str, Any]
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
console = Console(stderr=True, highlight=False, markup=False)

# Options that several studies have.
Model = Annotated[str, typer.Option(help="Model folder or 'bundled'.")]
DraftModel = Annotated[str, typer.Option(help="Draft model, or '' for none.")]
Rounds = Annotated[int, typer.Option(help="Rounds of everything that is compared.")]
Tokens = Annotated[int, typer.Option(help="Tokens per answer.")]
Threads = Annotated[int, typer.Option(help="CPU threads of the model.")]
Batches = Annotated[str, typer.Option(help="Requests in flight, comma-separated.")]
Arms = Annotated[str, typer.Option(help="What is compared, comma-separated; else all.")]
Name = Annotated[str, typer.Option(help="Name of the result.")]
Output = Annotated[Path, typer.Option(help="Folder of the result.")]


@dataclass(frozen=True, slots=True)
class Study:
    """How a study is called, and how its result is shown.

    Args:
        name: the module's, below `package`.
        page: Markdown of a result.
        plot: draws a result.
        package: where its module is.
    """

    name: str
    page: Callable[[Result], str] | None = None
    plot: Callable[[Figure, Result], None] | None = None
    package: str = "evals.studies"

    @property
    def module(self) -> str:
        """As it is typed after `python -m`."""
        return f"{self.package}.{self.name}"

    def run(self, command: typer.Typer | Callable[..., None]) -> None:
        """Run its command line."""

        def call() -> None:
            try:
                command() if isinstance(command, typer.Typer) else typer.run(command)
            except LoadError as error:
                raise LoadError(f"{error} ({MODEL_HINT})") from error

        finish(self.module, call)

    def save(self, figures: Result, name: str = "", *, folder: Path | None = None) -> Path:
        """Write a result in all its forms; the path of the JSON."""
        folder = folder or RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name or self.name}.json"
        result = {**origin(self.module), **figures}
        text = json.dumps(result, indent=2, default=str)
        path.write_text(text + "\n", encoding="utf-8")
        # What was not written to the file is not in the page either.
        result = json.loads(text)
        if self.page is not None:
            path.with_suffix(".md").write_text(self.page(result), encoding="utf-8")
        if self.plot is not None:
            draw(self.plot, result, path.with_suffix(".svg"))
        return path

    def report(self, figures: Result, name: str = "", *, folder: Path | None = None) -> Path:
        """Save a result, and print it."""
        path = self.save(figures, name, folder=folder)
        shown = path.with_suffix(".md") if self.page is not None else path
        typer.echo(shown.read_text(encoding="utf-8"))
        console.print(f"written to {path}")
        return path


def draw(plot: Callable[[Figure, Result], None], result: Result, path: Path) -> None:
    """A plot as a file; the same result gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "greenllm", "svg.fonttype": "none"}):
        figure = Figure(layout="constrained")
        plot(figure, result)
        figure.savefig(path, format="svg", metadata={"Date": None})


def curves(axes: Axes, lines: Mapping[str, Sequence[Any]], **settings: Any) -> None:
    """Lines by their names: x, y, and how they look; see `labelled`."""
    for name, line in lines.items():
        axes.plot(*line, label=name)
    labelled(axes, **settings)


def labelled(
    axes: Axes, *, ticks: Sequence[int] = (), legend: bool = True, **settings: Any
) -> None:
    """Grid and legend; `ticks` are batch sizes, and the other settings those of `Axes.set`."""
    axes.set(**settings)
    if ticks:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.grid(visible=True, alpha=0.3)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def each_round(count: int, *, warm_up: bool = False) -> Iterator[int]:
    """Numbers of rounds, and word of each that is over; the one that warms up is -1."""
    for number in range(-1 if warm_up else 0, count):
        yield number
        console.print(f"round {number + 1}/{count}")


def rotate(arms: Sequence[Item], number: int) -> list[Item]:
    """The order of a round: each begins with another arm."""
    at = number % len(arms)
    return [*arms[at:], *arms[:at]]


def interleave(
    measure: Callable[[Key, int], Item],
    count: int,
    *groups: Sequence[Key],
    warm_up: bool = False,
    after: Callable[[Mapping[Key, Sequence[Item]]], None] = lambda found: None,
) -> dict[Key, list[Item]]:
    """What `measure` gives for each key and round; in every round those of a group take turns.

    A round that warms up is not kept. `after` sees all there is, after each turn.
    """
    found: dict[Key, list[Item]] = {key: [] for group in groups for key in group}
    for number in each_round(count, warm_up=warm_up):
        for group in groups:
            for key in rotate(group, number):
                taken = measure(key, number)
                if number >= 0:
                    found[key].append(taken)
                    after(found)
    return found


def call(module: str, *words: str) -> str:
    """What a module prints when it is run; its progress and its mistakes are shown.

    Raises:
        BenchError: it failed.
    """
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{module} {' '.join(words[:1])} ended with code {done.returncode}")
    return done.stdout


def read(path: Path) -> dict[str, Any]:
    """A result that was written before.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path.name} is not a result: {error}") from error
    if not isinstance(found, dict):
        raise BenchError(f"{path.name} is not a result: it holds no object")
    return found


def pick(names: Sequence[str], known: Collection[str], refusal: str) -> list[str]:
    """Names that are known; all of them without any.

    Raises:
        BenchError: one is not known; it begins with `refusal`.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchError(f"{refusal} {', '.join(unknown)}; there are {', '.join(known)}")
    return list(names or known)


def split_names(text: str) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in text.split(",")] if text else []


def split_numbers(text: str, option: str) -> list[int]:
    """Whole numbers above 0 between commas.

    Raises:
        BenchError: they are none; it names the option.
    """
    found = [int(word) if word.isdecimal() else 0 for word in split_names(text)]
    if not found or min(found) < 1:
        raise BenchError(f"{option} takes numbers like 1,10,100, not {text!r}")
    return found
