"""One run as a job of another program: `python -m finetune.job finetune --config C --output O`.

Contract: the words are those of `greenllm finetune`, and it runs the same; an error that ends it is
in the outcome's file in the output folder too. That folder belongs to the job alone.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from finetune.bill.outcome import RunError, RunOutcome
from finetune.commands.finetune import finetune
from finetune.files import OUTCOME, SavingError
from finetune.recipe import Recipe
from greenllm.config import load
from greenllm.core import GreenllmError


def main(arguments: list[str]) -> int:
    """Run; returns the exit code, 2 for what a user can mend."""
    parser = argparse.ArgumentParser(prog="python -m finetune.job")
    parser.add_argument("command", choices=["finetune"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args(arguments)
    try:
        flags = {"output": given.output, "resume": given.resume}
        finetune(load(Recipe, flags=flags, file=given.config))
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
