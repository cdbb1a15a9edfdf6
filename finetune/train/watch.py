"""Watches a run while it trains: counts tokens, books joules, predicts the bill, says when to stop.

Contract: it never changes what is learnt, only when training ends: at the budget (or when a failed
meter leaves it unknown), at an interrupt (after the step), or before an optimizer step whose
gradients are not finite, so that the weights it leaves are those of the last good step. The
prediction is made once, after `PREDICT_AFTER` steps, and counts evaluations and saves to come.

Not covered: joules of other nodes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from finetune.bill.journal import RunJournal, Seen
from finetune.bill.outcome import StopReason
from finetune.bill.phases import LEARNING, PhaseAccount, PhaseEnergy, RunPhase
from finetune.train.processes import Processes
from greenllm.core import GreenllmError

PREDICT_AFTER = 20
_SETTLED = 3
_JOURNAL_S = 1.0
ALONE = Processes()


class TrainingError(GreenllmError):
    """Training cannot go on; the message says what the weights in the output are."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"{what} at step {step}: a smaller --learning-rate may help; what is kept are the"
            " weights before that step"
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for people."""

    seen: Seen
    num_steps: int
    loss: float | None
    tokens_per_s: float
    watts: float
    spent_j: float
    predicted_j: float | None


class RunWatch(TrainerCallback):  # type: ignore[misc]
    """A trainer's callback.

    `reserve_j` is what will still be spent after training, `evaluation_j` what one evaluation on
    the way is expected to cost. `path` is the journal's.
    """

    def __init__(
        self,
        account: PhaseAccount,
        path: Path,
        *,
        total_tokens: int,
        budget_j: float | None = None,
        reserve_j: float = 0.0,
        evaluation_j: float = 0.0,
        processes: Processes = ALONE,
        show: Callable[[Progress], None] = lambda progress: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.account = account
        self.seen = Seen()
        self.stopped_by: StopReason | None = None
        self.predicted_j: float | None = None
        self.losses: list[tuple[int, float]] = []
        self.scores: list[tuple[int, float]] = []
        self._path = path
        self._total_tokens = total_tokens
        self._budget_j = budget_j
        self._reserve_j = reserve_j
        self._evaluation_j = evaluation_j
        self._saves = self._evaluations = 0
        self._before: dict[RunPhase, PhaseEnergy] = {}
        self._processes = processes
        self._show = show
        self._clock = clock
        self._written_s = clock()
        self._interrupted = False
        self._steps_here = 0
        self._settled: tuple[Seen, PhaseEnergy] | None = None

    def count(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Note a batch that is about to be trained on."""
        size = inputs["input_ids"].numel()
        mask = inputs.get("attention_mask")
        tokens = size if mask is None else int(mask.sum())
        answers = inputs.get("completion_mask")  # what rows of preferences have for labels
        learnt = int((inputs["labels"] != -100).sum() if answers is None else answers.sum())
        size, tokens, learnt = self._processes.sums([size, tokens, learnt])
        self.seen = self.seen.plus(tokens, size - tokens, learnt)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends training after the step, the second at once."""

        def note(number: int, frame: object) -> None:
            self._interrupted = True
            signal.signal(signal.SIGINT, before)

        try:
            before = signal.signal(signal.SIGINT, note)
        except ValueError:  # not the main thread: whoever started it stops it
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The meter's share of everything before belongs to loading."""
        self.seen = replace(self.seen, steps=state.global_step)
        self.account.begin("training")
        self._before = self.account.by_phase()
        if self._processes.is_main:
            self.write_journal()  # from now on an interrupt saves: whoever pauses runs looks for it

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse gradients that would ruin the weights."""
        for parameter in kwargs["model"].parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise TrainingError("gradients are not finite", state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Book, predict, show, and stop where it is time."""
        self.seen = replace(self.seen, steps=state.global_step)
        self.account.read()
        spent = self.account.spent(*LEARNING)
        self._steps_here += 1
        if self._steps_here == _SETTLED:
            self._settled = (self.seen, spent)
        if self._steps_here == PREDICT_AFTER and self.predicted_j is None:
            self.predicted_j = self._prediction(args, state)
        if self._processes.is_main:
            self._show(self._progress(args, state))
        if self._processes.any(self._is_over()):
            self.stopped_by = self.stopped_by or "another process"
            control.should_training_stop = control.should_save = True
        if self._processes.is_main and self._clock() - self._written_s >= _JOURNAL_S:
            self.write_journal()
        return control

    def _is_over(self) -> bool:
        if self._interrupted:
            self.stopped_by = "interrupt"
        elif self._budget_j is not None and self._processes.is_main:
            if not self.account.is_known:
                self.stopped_by = "budget: the meter failed, so nobody knows what is left of it"
            elif self.account.spent().total_j + self._reserve_j >= self._budget_j:
                self.stopped_by = "budget"
        return self.stopped_by is not None

    def _prediction(self, args: Any, state: Any) -> float | None:
        """The whole bill: what was spent, and what the tokens to come will cost as these did."""
        if self._settled is None or not self.account.is_known:
            return None
        seen, spent = self._settled
        tokens = self.seen.tokens - seen.tokens
        joules = self.account.spent(*LEARNING).total_j - spent.total_j
        if tokens <= 0 or joules <= 0:
            return None
        left = max(0, self._total_tokens - self.seen.tokens)
        to_come_j = joules / tokens * left + self._evaluations_and_saves_j(args, state)
        return self.account.spent().total_j + to_come_j + self._reserve_j

    def _evaluations_and_saves_j(self, args: Any, state: Any) -> float:
        """What evaluations and checkpoints to come will cost: as those before did."""
        evaluation_j = self._mean_j("evaluation", self._evaluations) or self._evaluation_j
        save_j = self._mean_j("saving", self._saves)
        evaluations = _left(state, args.eval_steps) if args.eval_strategy == "steps" else 0
        saves = _left(state, args.save_steps) if args.save_strategy == "steps" else 0
        return evaluations * evaluation_j + saves * save_j

    def _mean_j(self, phase: RunPhase, count: int) -> float:
        spent = self.account.spent(phase).minus(self._before.get(phase, PhaseEnergy()))
        return spent.total_j / count if count else 0.0

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count checkpoints, for what one costs."""
        self._saves += 1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count evaluations, for what one costs."""
        self._evaluations += 1

    def _progress(self, args: Any, state: Any) -> Progress:
        spent = self.account.spent(*LEARNING)
        seconds = spent.duration_s or 1e-9
        return Progress(
            self.seen,
            state.max_steps,
            self.losses[-1][1] if self.losses else None,
            self.seen.tokens / seconds,
            spent.total_j / seconds,
            self.account.spent().total_j,
            self.predicted_j or self._prediction(args, state),
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the curves."""
        if "loss" in logs:
            self.losses.append((state.global_step, float(logs["loss"])))
        if "eval_loss" in logs:
            self.scores.append((state.global_step, float(logs["eval_loss"])))

    def write_journal(self) -> None:
        """Leave what was spent where a run that goes on after a crash finds it."""
        self.journal().write(self._path)
        self._written_s = self._clock()

    def journal(self) -> RunJournal:
        """What a later run has to know."""
        losses, scores = tuple(self.losses), tuple(self.scores)
        found = RunJournal(self.seen, {}, True, self.predicted_j, losses, scores)
        return found.spent(self.account)

    def restore(self, checkpoint: RunJournal) -> None:
        """Take over how far a checkpoint had come; its joules are `take_over`'s."""
        self.seen, self.predicted_j = checkpoint.seen, checkpoint.predicted_j
        self.losses, self.scores = list(checkpoint.losses), list(checkpoint.scores)


def _left(state: Any, every: float) -> int:
    """How often what is done every so many steps is still to be done, at this step included."""
    return int(state.max_steps // every - (state.global_step - 1) // every)
