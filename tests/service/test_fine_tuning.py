"""The fine-tuning API with the official client: upload, train, pause, restart, use."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.data.household import household_rows
from serving.jobs.store import JobStore

pytestmark = pytest.mark.slow
ROWS = household_rows()
SHORT: dict[str, Any] = {"steps": 16, "answers": 0, "save_every": 4}


def jsonl(rows: list[dict[str, str]]) -> io.BytesIO:
    turns = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows
    ]
    file = io.BytesIO("\n".join(map(json.dumps, turns)).encode())
    file.name = "household.jsonl"
    return file


@pytest.fixture(scope="module")
def trainer(server_in: Callable[[Path], Any], tmp_path_factory: Any) -> Any:
    """A server of these tests' own."""
    return server_in(tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def file_id(trainer: Any) -> str:
    uploaded = trainer.openai.files.create(file=jsonl(ROWS), purpose="fine-tune")
    assert (uploaded.purpose, uploaded.filename) == ("fine-tune", "household.jsonl")
    return str(uploaded.id)


def create(server: Any, file_id: str, **more: Any) -> Any:
    recipe = {**SHORT, **more.pop("recipe", {})}
    return server.openai.fine_tuning.jobs.create(
        model="bundled", training_file=file_id, extra_body={"recipe": recipe}, **more
    )


def wait(server: Any, job_id: str, *statuses: str, timeout_s: float = 120) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        job = server.openai.fine_tuning.jobs.retrieve(job_id)
        if job.status in statuses:
            return job
        assert job.status not in ("failed", "cancelled"), job.error
        time.sleep(0.1)
    pytest.fail(f"{job_id} is {job.status}, not {statuses}")


def wait_for_step(server: Any, job_id: str, step: int) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        found = server.openai.fine_tuning.jobs.list_events(job_id, limit=1000).data
        if any(event.type == "metrics" and event.data["step"] >= step for event in found):
            return
        time.sleep(0.05)
    pytest.fail(f"{job_id} has not come to step {step}")


def test_a_job_ends_as_a_model_that_answers(trainer: Any, file_id: str) -> None:
    job = create(
        trainer, file_id, suffix="household", seed=3, metadata={"for": "test"},
        hyperparameters={"n_epochs": 3}, recipe={"steps": 150},
    )  # fmt: skip
    assert job.status in ("queued", "running")
    assert job.hyperparameters.n_epochs == 3
    done = wait(trainer, job.id, "succeeded", timeout_s=240)
    assert done.fine_tuned_model.startswith("ft:bundled:household:")
    assert done.trained_tokens > 50_000
    assert (done.seed, done.metadata) == (3, {"for": "test"})
    energy = done.model_extra["energy"]
    assert energy["energy_joules"] > energy["by_phase_joules"]["training"] > 0
    rows = ROWS[:10]
    answers = [
        trainer.openai.chat.completions.create(
            model=done.fine_tuned_model,
            messages=[{"role": "user", "content": row["prompt"]}],
            temperature=0,
        )
        for row in rows
    ]
    said = [answer.choices[0].message.content for answer in answers]
    assert sum(a == row["completion"] for a, row in zip(said, rows, strict=True)) >= 8
    assert answers[0].model == done.fine_tuned_model
    events = trainer.openai.fine_tuning.jobs.list_events(job.id, limit=1000).data
    assert events[0].message == "succeeded"
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 150
    kept = trainer.openai.fine_tuning.jobs.checkpoints.list(job.id).data
    assert kept[0].step_number == 150
    assert kept[0].metrics.train_loss < 1


def test_training_is_on_the_servers_books_and_on_no_request(trainer: Any, file_id: str) -> None:
    before = trainer.http.get("/v1/energy").json()["session"]
    job = create(trainer, file_id)
    asked = 0
    deadline_s = time.monotonic() + 120
    while trainer.openai.fine_tuning.jobs.retrieve(job.id).status != "succeeded":
        assert time.monotonic() < deadline_s
        trainer.openai.chat.completions.create(
            model="bundled", messages=[{"role": "user", "content": "Hi"}], max_tokens=8
        )
        asked += 1
        time.sleep(0.2)
    trainer.wait_idle()
    time.sleep(1.2)
    trainer.openai.completions.create(model="bundled", prompt="The end", max_tokens=1)
    after = trainer.http.get("/v1/energy").json()["session"]
    assert after["residual"] < 1e-6
    trained_j = after["training_joules"] - before["training_joules"]
    job = trainer.openai.fine_tuning.jobs.retrieve(job.id)
    billed_j = job.model_extra["energy"]["energy_joules"]
    # The job's own meter starts a second after its process, and ends before it.
    assert 0.6 * billed_j < trained_j < 1.8 * billed_j + 3
    requests_j = after["request_joules"] - before["request_joules"]
    assert requests_j < trained_j
    assert asked > 3


def test_a_paused_job_goes_on_where_it_was(trainer: Any, file_id: str) -> None:
    job = create(trainer, file_id, recipe={"steps": 40})
    wait_for_step(trainer, job.id, 5)
    trainer.openai.fine_tuning.jobs.pause(job.id)
    wait(trainer, job.id, "paused")
    trainer.openai.fine_tuning.jobs.resume(job.id)
    done = wait(trainer, job.id, "succeeded")
    events = trainer.openai.fine_tuning.jobs.list_events(job.id, limit=1000).data
    messages = [event.message for event in events if event.type == "message"]
    assert messages == [
        "succeeded", "training goes on", "resumed", "paused", "training started", "created",
    ]  # fmt: skip
    assert done.trained_tokens > 40 * 8 * 50


def test_a_job_survives_the_death_of_its_server(
    server_in: Callable[[Path], Any], tmp_path: Path
) -> None:
    own = server_in(tmp_path)
    uploaded = own.openai.files.create(file=jsonl(ROWS), purpose="fine-tune")
    job = create(own, uploaded.id, recipe={"steps": 40})
    wait_for_step(own, job.id, 9)
    running = JobStore(own.data_dir / "fine_tuning").find(job.id)
    assert running is not None
    assert running.pid is not None
    os.kill(running.pid, signal.SIGSTOP)  # or it might be done before the server is back
    own.kill()
    again = server_in(tmp_path)
    assert again.openai.files.retrieve(uploaded.id).bytes == uploaded.bytes
    done = wait(again, job.id, "succeeded")
    assert done.fine_tuned_model is not None
    events = again.openai.fine_tuning.jobs.list_events(job.id, limit=1000).data
    messages = {event.message for event in events}
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps == list(range(40, 0, -1)), "no step is told twice"
    assert {
        "queued again: its process ended before its training did",
        "training goes on",
    } <= messages
    answer = again.openai.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "Log: x"}], max_tokens=4
    )
    assert answer.model == done.fine_tuned_model


def test_a_job_learns_preferences_as_openai_writes_them(trainer: Any) -> None:
    rows = ROWS[:40]
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": row["prompt"]}]},
            "preferred_output": [{"role": "assistant", "content": row["completion"]}],
            "non_preferred_output": [{"role": "assistant", "content": "I would not know."}],
        }
        for row in rows
    ]
    file = io.BytesIO("\n".join(map(json.dumps, pairs)).encode())
    file.name = "pairs.jsonl"
    uploaded = trainer.openai.files.create(file=file, purpose="fine-tune")
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}}
    job = create(trainer, uploaded.id, method=method, recipe={"steps": 8, "answers": 0})
    assert (job.method.type, job.method.dpo.hyperparameters.beta) == ("dpo", 0.2)
    done = wait(trainer, job.id, "succeeded")
    losses = [
        event.data["train_loss"]
        for event in trainer.openai.fine_tuning.jobs.list_events(job.id, limit=100).data
        if event.type == "metrics"
    ]
    assert losses[-1] == pytest.approx(math.log(2), rel=1e-3), "the first: events are newest first"
    assert losses[0] < losses[-1]
    assert done.trained_tokens > 0
