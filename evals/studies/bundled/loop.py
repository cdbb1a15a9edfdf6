"""The training loop that the model and its draft share: resumable, pausable, bounded by tokens.

Contract: a checkpoint is written every few minutes and after the last step, under a temporary name
that is then renamed; a run that finds one goes on from it and reads what it would have read. The
curve has one row per check. Not covered: stopping early, several devices, and bit-equal repeats of
a resumed run, since sums in bfloat16 depend on how threads share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from rich.console import Console
from transformers import LlamaForCausalLM

from evals.studies.bundled.effort import Clock, Effort, append_row, keep_rows
from evals.studies.bundled.optimizer import Optimizer
from evals.studies.bundled.packing import Batch
from evals.studies.bundled.record import cost, save_model, write_json

CHECK_STEPS: Final = 250
CHECKPOINT_S: Final = 180.0
TELL_STEPS: Final = 50
CURVE: Final = "curve.csv"


Output = Annotated[Path, typer.Option(help="A folder to write.")]
Budget = Annotated[int, typer.Option(help="Token budget.")]
Text = Annotated[Path | None, typer.Option(help="Folder with *.txt, real text.")]


@dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    output: Path
    tokens: int
    text: Path | None
    threads: int
    seed: int

    def begin(self) -> None:
        """Seed, threads and folder."""
        torch.manual_seed(self.seed)
        torch.set_num_threads(self.threads)
        self.output.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and how it is checked."""

    output: Path
    tokens: int
    model: LlamaForCausalLM
    optimizer: Optimizer
    batch: Callable[[int], Batch]
    loss: Callable[[Batch, int], tuple[torch.Tensor, float]]
    check: Callable[[], Mapping[str, float]]

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished run is kept."""
        return self.output / "checkpoint.pt"

    @property
    def curve(self) -> Path:
        """Where the curve is kept."""
        return self.output / CURVE


def save_checkpoint(job: Job, effort: Effort) -> None:
    """Keep everything that the next step depends on."""
    kept = {
        "model": job.model.state_dict(),
        "optimizer": job.optimizer.state(),
        "effort": asdict(effort),
    }
    name = job.checkpoint.with_suffix(".new")
    torch.save(kept, name)
    name.replace(job.checkpoint)


def resume(job: Job) -> Effort:
    """Where the run stands: at its last checkpoint, or at the start."""
    effort = Effort()
    if job.checkpoint.exists():
        kept = torch.load(job.checkpoint, weights_only=True)
        job.model.load_state_dict(kept["model"])
        job.optimizer.restore(kept["optimizer"])
        effort = Effort(**kept["effort"])
    keep_rows(job.curve, effort.steps)
    return effort


def update(job: Job, effort: Effort, clock: Clock) -> Effort:
    """One step."""
    batch = job.batch(effort.steps)
    loss, shown = job.loss(batch, effort.steps)
    job.optimizer.step(loss, effort.tokens / job.tokens)
    return effort.after(shown, batch.tokens, *clock.lap())


def record_check(job: Job, effort: Effort, clock: Clock) -> Effort:
    """One row of the curve."""
    row = {
        "step": effort.steps,
        "tokens": effort.tokens,
        "cpu_s": round(effort.cpu_s, 1),
        "loss": round(effort.loss, 5),
    }
    append_row(job.curve, row | {name: round(v, 5) for name, v in job.check().items()})
    return effort.plus(*clock.lap())


def tell(console: Console, job: Job, effort: Effort) -> None:
    """One line on how it goes."""
    console.print(
        f"step {effort.steps} of {effort.tokens / job.tokens:.1%} loss {effort.loss:.4f} "
        f"{effort.tokens / effort.wall_s:.0f} tokens/s",
        highlight=False,
    )


def run(job: Job) -> Effort:
    """Update until the tokens are used up."""
    console, clock = Console(), Clock()
    effort = resume(job)
    saved_s = effort.wall_s
    while effort.tokens < job.tokens:
        effort = update(job, effort, clock)
        if effort.steps % TELL_STEPS == 0:
            tell(console, job, effort)
        if effort.steps % CHECK_STEPS == 0:
            effort = record_check(job, effort, clock)
        if effort.wall_s - saved_s > CHECKPOINT_S:
            save_checkpoint(job, effort)
            saved_s = effort.wall_s
    effort = record_check(job, effort, clock)
    save_checkpoint(job, effort)
    return effort


def run_and_save(job: Job, settings: Settings) -> None:
    """Train, and write the model and what it took; `report` scores it and writes its card."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    effort = run(job)
    names = sorted(path.name for path in settings.text.glob("*.txt")) if settings.text else []
    about = {"date": started, "token_budget": settings.tokens, "seed": settings.seed,
             "threads": settings.threads, "text_files": names}  # fmt: skip
    save_model(job.model, job.output)
    write_json(job.output / "training.json", cost(effort, about))
    job.checkpoint.unlink()
