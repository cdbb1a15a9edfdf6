"""How a run ended and what it cost: one small file for whoever started it, who parses no report.

Contract: a run writes it together with its report; `finetune.job` also where an error ended the run
before that. It is there whole or not at all. Not covered: a run that was killed leaves none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from finetune.bill.journal import RunJournal
from finetune.bill.phases import RunPhase
from finetune.files import read_json, write_json
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.energy.meters.protocol import Meter

RunStatus = Literal["completed", "stopped", "failed"]
StopReason = Literal[
    "interrupt",
    "budget",
    "budget: the meter failed, so nobody knows what is left of it",
    "another process",
]


@dataclass(frozen=True, slots=True)
class RunError:
    """What ended a run; `option` is the one to blame, or whose file is, where that is known."""

    message: str
    option: str | None = None

    @classmethod
    def of(cls, error: GreenllmError) -> RunError:
        """What an error says."""
        return cls(str(error), error.option if isinstance(error, ConfigError) else None)


@dataclass(frozen=True, slots=True)
class TrainingBill:
    """Joules and grams of a whole run; joules are None where the meter does not know them.

    `by_phase_j` adds up to `total_j`. `operational_g` are grams of CO2e without the hardware's own.
    """

    total_j: float | None
    by_phase_j: Mapping[RunPhase, float | None]
    joules_per_token: float | None
    predicted_j: float | None
    method: str
    measured: bool
    uncertainty: float | None
    operational_g: float | None

    @classmethod
    def of(cls, journal: RunJournal, meter: Meter, operational_g: float | None) -> TrainingBill:
        """What a journal's joules come to."""
        known, training_j, tokens = journal.is_known, journal.training_j, journal.seen.tokens
        return cls(
            journal.total_j,
            journal.by_phase_j,
            training_j / tokens if training_j and tokens else None,
            journal.predicted_j if known else None,
            meter.method,
            meter.measured,
            meter.uncertainty if known else None,
            operational_g,
        )


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended: `stopped_by` where it stopped before its end, `error` where it failed."""

    status: RunStatus
    stopped_by: StopReason | None = None
    error: RunError | None = None
    tokens: int = 0
    bill: TrainingBill | None = None

    @property
    def is_done(self) -> bool:
        """Whether it came to an end of its own and left weights."""
        return self.status != "failed" and self.stopped_by != "interrupt"

    @property
    def reason(self) -> str | None:
        """Why it did not come to its end, for people."""
        return self.error.message if self.error else self.stopped_by

    @classmethod
    def read(cls, path: Path) -> RunOutcome | None:
        """What a file holds; None where there is none that can be read."""
        found = read_json(path)
        try:
            if found is None:
                return None
            error, bill = found.pop("error"), found.pop("bill")
            return cls(
                **found,
                error=None if error is None else RunError(**error),
                bill=None if bill is None else TrainingBill(**bill),
            )
        except (KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Replace the file.

        Raises:
            SavingError: it cannot be written.
        """
        write_json(path, asdict(self))
