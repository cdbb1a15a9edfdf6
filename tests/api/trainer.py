"""What stands in for training: `python -m finetune.job finetune --config ... --output ...`.

A step takes some milliseconds and one joule, and its loss falls; an interrupt ends it as training
ends. The first line of the data may say what goes wrong: `die`, or `diverge`. `ADAPTER`, a folder
beside this file, is what every run ends with.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from finetune.bill.journal import RunJournal, Seen
from finetune.bill.outcome import RunError, RunOutcome, TrainingBill
from finetune.bill.phases import PhaseEnergy
from finetune.files import CHECKPOINTS, JOURNAL, MARKER, OUTCOME

ADAPTER, STEP_J, STEP_TOKENS = "adapter", 1.0, 10
SAVE_EVERY = 4


class Run:
    """A run on some data, up to a number of steps."""

    def __init__(self, recipe: dict[str, Any], output: Path, *, resumes: bool) -> None:
        self._data, self._steps, self._output = Path(recipe["data"]), recipe["steps"], output
        output.mkdir(parents=True, exist_ok=True)
        self._journal = (RunJournal.read(output / JOURNAL) if resumes else None) or RunJournal()
        self._is_interrupted = False
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        self._is_interrupted = True

    def end(self) -> RunOutcome:
        """Train; how that ended."""
        for number, line in enumerate(self._data.read_text("utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError:
                return RunOutcome(
                    "failed", error=RunError(f"{self._data}:{number} is not JSON", "data")
                )
            if "die" in row:
                sys.exit(3)
            if "diverge" in row:
                self._step()
                return self._outcome("failed", error=RunError("the loss is nan"))
        while self._journal.seen.steps < self._steps:
            if self._is_interrupted:
                return self._outcome("stopped", stopped_by="interrupt")
            self._step()
        for path in (Path(__file__).parent / ADAPTER).iterdir():
            shutil.copy(path, self._output)
        return self._outcome("completed")

    def _step(self) -> None:
        time.sleep(0.01)
        step = self._journal.seen.steps + 1
        is_saved = step % SAVE_EVERY == 0
        self._journal = RunJournal(
            Seen(step, step * STEP_TOKENS),
            {"training": PhaseEnergy(active_j=step * STEP_J)},
            losses=(*self._journal.losses, (step, 1 / step)),
            scores=(*self._journal.scores, *([(step, 2 / step)] if is_saved else [])),
        )
        self._journal.write(self._output / JOURNAL)
        if is_saved:
            folder = self._output / CHECKPOINTS / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            self._journal.write(folder / MARKER)

    def _outcome(self, status: Any, **more: Any) -> RunOutcome:
        spent_j = self._journal.seen.steps * STEP_J
        bill = TrainingBill(
            spent_j, {"training": spent_j}, STEP_J / STEP_TOKENS, None, "fake", False, 0.1, 0.5
        )
        return RunOutcome(status, tokens=self._journal.seen.tokens, bill=bill, **more)


def main() -> None:
    """Run, and leave the outcome."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["finetune"])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    recipe = tomllib.loads(given.config.read_text("utf-8"))
    outcome = Run(recipe, given.output, resumes=given.resume).end()
    outcome.write(given.output / OUTCOME)
    sys.exit(0 if outcome.error is None else 2)


if __name__ == "__main__":
    main()
