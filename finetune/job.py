"""One run as a job of another program: `python -m finetune.job RECIPE OUTPUT [--resume]`.

Contract: runs what `greenllm finetune --config RECIPE --output OUTPUT` runs; an error that ends it
is in the outcome's file in OUTPUT too. OUTPUT belongs to the job alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from pathlib import Path

from finetune.bill.outcome import RunError, RunOutcome
from finetune.files import OUTCOME, SavingError
from finetune.recipe import Recipe
from greenllm.config import load
from greenllm.core import GreenllmError


def main(arguments: list[str]) -> int:
    """Run; returns the exit code, 2 for what a user can mend."""
    parser = argparse.ArgumentParser(prog="python -m finetune.job")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args(arguments)
    try:
        flags = {"output": given.output, "resume": given.resume}
        recipe = load(Recipe, flags=flags, file=given.recipe)
        importlib.import_module("greenllm.cli.finetune").run(recipe)
    except GreenllmError as error:
        print(f"greenllm: {error}", file=sys.stderr)
        _keep(RunError.of(error), given.output)
        return 2
    return 0


def _keep(error: RunError, output: Path) -> None:
    """Leave the error; a run that trained has left more than that already."""
    if RunOutcome.read(output / OUTCOME) is None:
        output.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(SavingError):
            RunOutcome("failed", error=error).write(output / OUTCOME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
