"""All studies: what is committed came out of them, and their commands are as documented."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

from evals.studies import study

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python -m (evals\.[\w.]+)([^`#\n]*)")


def study_of(path: Path) -> study.Study:
    """The study that made a result, by its command."""
    result = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    module = import_module(result["command"].split()[2])
    if hasattr(module, "__path__"):
        module = import_module(f"{module.__name__}.report")
    found: study.Study = module.STUDY
    return found


@pytest.mark.parametrize("path", sorted(study.RESULTS.glob("*.md")), ids=lambda path: path.stem)
def test_committed_pages_say_what_the_committed_figures_say(path: Path) -> None:
    page = study_of(path).page
    assert page is not None
    result = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert page(result) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["finetuning", "sharing", "speculation_babyllama", "techniques"])
def test_plots_are_drawn_from_the_committed_figures(name: str, tmp_path: Path) -> None:
    path = study.RESULTS / f"{name}.json"
    plot = study_of(path).plot
    assert plot is not None
    study.draw(plot, json.loads(path.read_text(encoding="utf-8")), tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert re.search("validation loss|requests in the batch|requests in flight", drawn)


def options(module: str, words: list[str]) -> set[str]:
    """What a command understands, by its declaration."""
    found = import_module(module)
    if hasattr(found, "__path__"):
        found = import_module(f"{module}.__main__")
    app = getattr(found, "app", None) or typer.Typer()
    if not app.registered_commands:
        app.command()(found.main)
    command = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}


def test_documented_commands_have_their_options() -> None:
    seen = set()
    for page in PAGES:
        for module, rest in COMMAND.findall(page.read_text(encoding="utf-8")):
            named = set(re.findall(r"(?<!\S)--[a-z0-9][a-z0-9-]*", rest)) - {"--help"}
            assert named <= options(module, rest.split()), (page.name, module)
            seen.add(module)
    assert len(seen) > 15


@pytest.mark.parametrize("name", ["runners", "adapters", "sharing", "overhead", "idle"])
def test_benchmarks_say_what_makes_their_model(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = import_module(f"evals.studies.{name}")
    monkeypatch.setattr("sys.argv", [name, "--model", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        module.STUDY.run(module.main)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"no folder .*`python -m evals\.studies\.peers model`", said)
