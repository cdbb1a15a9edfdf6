"""Runs fine-tuning jobs one after the other, each in a process of its own at low priority.

Contract: a job survives a restart of the server, also after kill -9: it goes on from its last
complete checkpoint, and one that was done by then is taken. A change that a full disk refuses is
tried again. A finished adapter is put where the server finds it before the job says that it
succeeded. What training draws is told to the server's meter, so that it is not booked to requests.
Owners take turns: next is a job of the one whose last began longest ago. A job ends after
`longest_s` in its process at the latest.

Not covered: several jobs at once; training on the GPU that serves.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.bill.journal import RunJournal
from finetune.bill.outcome import RunError, RunOutcome
from finetune.files import JOURNAL, OUTCOME, REPORT
from serving.jobs.energy import energy_of, energy_of_journal, spent_since
from serving.jobs.models import disown, install
from serving.jobs.store import Job, JobStatus, JobStore, next_of

log = logging.getLogger(__name__)
_POLL_S, _RETRY_S = 0.25, 5.0
_LOWEST_PRIORITY = 19
Follow = Callable[[int, bool], None]
Spend = Callable[[str, float, float], None]


class JobRunner:
    """Owns the queue; `follow(pid, is_training)` is told when a job's process comes and goes."""

    def __init__(
        self,
        store: JobStore,
        adapters: Path,
        follow: Follow,
        *,
        longest_s: float = math.inf,
        spend: Spend = lambda owner, joules, grams: None,
    ) -> None:
        """`spend(owner, joules, grams)` is told what training has used since the last time."""
        self.store = store
        self._spend = spend
        self._longest_s = longest_s
        self._adapters = adapters
        self._follow = follow
        self._process: subprocess.Popen[bytes] | None = None
        self._current: str | None = None
        self._seen_steps = 0
        self._started_s = self._interrupted_s = 0.0
        self._was_interrupted = self._is_late = False
        self._stopping = False

    def recover(self, job: Job) -> None:
        """What runs without this runner is taken if it is done, and else goes on where it was."""
        if job.pid is not None:
            _kill_stale(job.pid, self.store.recipe(job.id))
        self._put_back(job)

    async def run(self) -> None:
        """Turn until cancelled."""
        await asyncio.to_thread(disown, self._adapters, self.store.models())
        while not self._stopping:
            wait_s = _POLL_S
            try:
                self.turn()
            except Exception:
                log.exception("fine-tuning jobs; tried again in %g s", _RETRY_S)
                wait_s = _RETRY_S
            await asyncio.sleep(wait_s)

    def turn(self) -> None:
        """Look after the job that runs, or start the next."""
        if self._current is None:
            jobs = self.store.all()
            if left := [job for job in jobs if job.status == "running"]:
                self.recover(left[0])
            elif waiting := [job for job in jobs if job.status == "queued"]:
                self._start(next_of(waiting, jobs))
            return
        job = self.store.find(self._current)
        if job is None or self._process is None:
            self._forget()
            return
        code = self._process.poll()
        self._note_progress(job)  # after the look at the process: what it wrote last is seen too
        if code is not None:
            self._forget()
            self._conclude(job, code)
        elif job.wanted == "cancel":
            self._process.kill()
        elif time.time() - self._started_s > self._longest_s:
            self._is_late = True
            self._process.kill()
        elif job.wanted == "pause":
            self._interrupt()

    def _start(self, job: Job) -> None:
        if self._is_done(job):
            self._conclude(job, 0)
            return
        recipe, output = self.store.recipe(job.id), self.store.output(job.id)
        command = [sys.executable, "-m", "finetune.job", "finetune"]
        command += ["--config", str(recipe), "--output", str(output)]
        for name in (REPORT, OUTCOME):  # of an interrupted run
            (output / name).unlink(missing_ok=True)
        goes_on = (output / JOURNAL).exists()  # what it has spent stays on its bill
        if goes_on:
            command.append("--resume")
        else:
            shutil.rmtree(output, ignore_errors=True)
        # Threads that sleep at barriers suit small steps of serving, and halve training's speed.
        environment = {n: text for n, text in os.environ.items() if n != "OMP_WAIT_POLICY"}
        self._started_s = time.time()
        with (recipe.parent / "log.txt").open("ab") as said:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip
        pid = self._process.pid
        self._follow(pid, True)
        os.setpriority(os.PRIO_PROCESS, pid, _LOWEST_PRIORITY)
        self._current, self._interrupted_s = job.id, 0.0
        self._was_interrupted = self._is_late = False
        self._seen_steps = self.store.last_step(job.id)
        self.store.change(
            job.id, status="running", pid=pid, started_at=job.started_at or int(time.time())
        )
        self.store.note(job.id, "training goes on" if goes_on else "training started")

    def _interrupt(self) -> None:
        """Ask the process to end; again only while it starts, when an interrupt may get lost.

        Once it trains, the first interrupt saves a checkpoint and a second would end it at once.
        """
        if self._process is None or self._current is None:
            return
        if self._has_begun and self._was_interrupted:
            return
        if time.monotonic() - self._interrupted_s > 1:
            self._was_interrupted, self._interrupted_s = True, time.monotonic()
            self._process.send_signal(signal.SIGINT)

    @property
    def _has_begun(self) -> bool:
        """Whether the process trains: its journal is newer than itself."""
        try:
            journal = self.store.output(self._current or "") / JOURNAL
            return journal.stat().st_mtime >= self._started_s
        except OSError:
            return False

    def _forget(self) -> None:
        if self._process is not None:
            self._follow(self._process.pid, False)
        self._process = self._current = None

    def _note_progress(self, job: Job) -> None:
        """Events of what the run's journal says; a journal that cannot be read ends nothing."""
        try:
            self._read_journal(job)
        except Exception:
            log.exception("the journal of job %s", job.id)

    def _read_journal(self, job: Job) -> None:
        """Turn what the run's journal says into events, and keep the joules so far."""
        journal = RunJournal.read(self.store.output(job.id) / JOURNAL)
        if journal is None:
            return
        scores = dict(journal.scores)
        for step, loss in journal.losses:
            if step > self._seen_steps:
                self._seen_steps = step
                data = {"step": step, "train_loss": loss, "valid_loss": scores.get(step)}
                self.store.note(job.id, f"step {step}: loss {loss:.4f}", data)
        self._keep_energy(job.id, energy_of_journal(journal))

    def _keep_energy(self, job_id: str, energy: Mapping[str, Any]) -> None:
        """Keep the joules of a job so far; its owner has spent what is new of them."""
        job = self.store.find(job_id)
        if job is not None and job.owner is not None:
            self._spend(job.owner, *spent_since(job.energy or {}, energy))
        self.store.change(job_id, energy=energy)

    def _conclude(self, job: Job, code: int) -> None:
        """A job whose end cannot be kept has failed; on a full disk it is tried again."""
        try:
            self._end(job, code)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            log.exception("the end of job %s", job.id)
            self._finish(job, "failed", error=f"what it trained cannot be kept: {error}")

    def _end(self, job: Job, code: int) -> None:
        outcome = self._outcome(job)
        bill = None if outcome is None else outcome.bill
        energy: dict[str, Any] = {} if bill is None else {"energy": energy_of(bill)}
        if bill is not None:
            self._keep_energy(job.id, energy["energy"])
        if job.wanted == "cancel":
            self._finish(job, "cancelled", **energy)
        elif outcome is not None and outcome.is_done:
            self._take(job, outcome, **energy)
        elif job.wanted == "pause":
            self._pause(job, **energy)
        elif outcome is not None and outcome.stopped_by == "interrupt":
            self._queue(job, **energy)
        else:
            error = (outcome and outcome.error) or self._crash(code)
            self._finish(job, "failed", error=error.message, blamed=error.option, **energy)

    def _crash(self, code: int) -> RunError:
        """Why there is no outcome."""
        if self._is_late:
            return RunError(f"it took more than {self._longest_s / 3600:g} hours (--max-job-hours)")
        return RunError(f"the training process ended with code {code}; see log.txt")

    def _put_back(self, job: Job) -> None:
        """A job whose process is gone, not by its own fault: taken if done, else waiting again."""
        if job.wanted == "cancel" or self._is_done(job):
            self._conclude(job, 0)
        elif job.wanted == "pause":
            self._pause(job)
        else:
            self._queue(job)

    def _outcome(self, job: Job) -> RunOutcome | None:
        return RunOutcome.read(self.store.output(job.id) / OUTCOME)

    def _is_done(self, job: Job) -> bool:
        outcome = self._outcome(job)
        return outcome is not None and outcome.is_done

    def _take(self, job: Job, outcome: RunOutcome, **energy: Any) -> None:
        """A run that is done becomes a model; what it did unseen is told first."""
        self._seen_steps = self.store.last_step(job.id)
        self._note_progress(job)
        name = install(job, self.store.output(job.id), self._adapters)
        if outcome.stopped_by is not None:
            self.store.note(job.id, f"stopped by {outcome.stopped_by}; the best weights are kept")
        tokens = outcome.tokens
        self._finish(job, "succeeded", fine_tuned_model=name, trained_tokens=tokens, **energy)

    def _pause(self, job: Job, **energy: Any) -> None:
        self.store.change(job.id, status="paused", wanted=None, pid=None, **energy)
        self.store.note(job.id, "paused")

    def _queue(self, job: Job, **energy: Any) -> None:
        self.store.change(job.id, status="queued", wanted=None, pid=None, **energy)
        self.store.note(job.id, "queued again: its process ended before its training did")

    def _finish(self, job: Job, status: JobStatus, error: str | None = None, **more: Any) -> None:
        if error is not None:  # where the server keeps things is its own affair
            error = error.replace(f"{self.store.folder(job.id)}{os.sep}", "")
        ended = {"status": status, "error": error, "finished_at": int(time.time()), **more}
        self.store.change(job.id, wanted=None, pid=None, **ended)
        said = status if error is None else f"{status}: {error}"
        self.store.note(job.id, said, level="info" if error is None else "error")
        self.store.drop_data(job.id)

    async def stop(self, timeout_s: float) -> None:
        """Let the job save a checkpoint; it goes on when the server is back."""
        self._stopping = True
        if self._process is None or self._current is None:
            return
        self._interrupt()
        deadline_s = time.monotonic() + timeout_s
        while self._process.poll() is None and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)
        self._process.kill()
        self._process.wait()
        job = self.store.find(self._current)
        self._forget()
        try:
            if job is not None:
                self._put_back(job)
        except Exception:  # the server that comes back finds it as it is
            log.exception("job %s at the stop of the server", job and job.id)


def _kill_stale(pid: int, recipe: Path) -> None:
    """End a run that outlived its server; a process with its number may be another by now."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if os.fsencode(recipe) in command:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return
