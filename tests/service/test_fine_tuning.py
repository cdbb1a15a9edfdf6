"""Fine-tuning jobs that really train, and outlive their server; what HTTP says is in tests/api."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from finetune.data.household import household_rows
from serving.jobs.store import JobStore
from tests.waiting import until

if TYPE_CHECKING:
    from tests.service.conftest import Server

pytestmark = pytest.mark.slow
ROWS = household_rows()


def upload(server: Server) -> Any:
    turns = [
        [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        for row in ROWS
    ]
    lines = (json.dumps({"messages": messages}) for messages in turns)
    file = io.BytesIO("\n".join(lines).encode())
    file.name = "household.jsonl"
    return server.openai.files.create(file=file, purpose="fine-tune")


def create(server: Server, file_id: str, steps: int) -> Any:
    recipe = {"steps": steps, "answers": 0, "save_every": 4}
    return server.openai.fine_tuning.jobs.create(
        model="bundled", training_file=file_id, suffix="household", extra_body={"recipe": recipe}
    )


def has_succeeded(server: Server, job: Any) -> Any:
    """The job, once it has."""
    now = server.openai.fine_tuning.jobs.retrieve(job.id)
    assert now.status not in ("failed", "cancelled"), now.error
    return now if now.status == "succeeded" else None


def steps_of(server: Server, job: Any) -> list[int]:
    """Those that events told of, the last first."""
    events: Any = server.openai.fine_tuning.jobs.list_events(job.id, limit=1000).data
    return [event.data["step"] for event in events if event.type == "metrics"]


def ask(server: Server, model: str, text: str, **more: Any) -> Any:
    return server.openai.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], temperature=0, **more
    )


def test_a_job_ends_as_a_model_that_answers_and_is_on_nobodys_bill(
    server_in: Callable[[Path], Server], tmp_path: Path
) -> None:
    server = server_in(tmp_path)
    before = server.http.get("/v1/energy").json()["session"]
    job, asked = create(server, upload(server).id, steps=150), 0
    while (done := has_succeeded(server, job)) is None:
        ask(server, "bundled", "Hi", max_tokens=8)
        asked += 1
        time.sleep(0.2)
    server.wait_idle()
    time.sleep(1.2)
    ask(server, "bundled", "The end", max_tokens=1)
    after = server.http.get("/v1/energy").json()["session"]
    assert after["residual"] < 1e-6
    trained_j = after["training_joules"] - before["training_joules"]
    energy = done.model_extra["energy"]
    billed_j = energy["energy_joules"]
    assert billed_j > energy["by_phase_joules"]["training"] > 0
    # The job's own meter starts a second after its process, and ends before it.
    assert 0.6 * billed_j < trained_j < 1.8 * billed_j + 3
    assert after["request_joules"] - before["request_joules"] < trained_j
    assert asked > 3
    assert done.trained_tokens > 50_000
    answers = [ask(server, done.fine_tuned_model, row["prompt"]) for row in ROWS[:10]]
    said = [answer.choices[0].message.content for answer in answers]
    assert sum(a == row["completion"] for a, row in zip(said, ROWS, strict=False)) >= 8
    assert steps_of(server, job)[0] == 150
    kept = server.openai.fine_tuning.jobs.checkpoints.list(job.id).data
    assert kept[0].step_number == 150
    assert (kept[0].metrics.train_loss or 9) < 1


def test_a_job_survives_the_death_of_its_server(
    server_in: Callable[[Path], Server], tmp_path: Path
) -> None:
    own = server_in(tmp_path)
    uploaded = upload(own)
    job = create(own, uploaded.id, steps=40)
    until(lambda: steps_of(own, job)[:1] >= [9], "step 9")
    running = JobStore(own.data_dir / "fine_tuning").find(job.id)
    assert running is not None
    assert running.pid is not None
    os.kill(running.pid, signal.SIGSTOP)  # or it might be done before the server is back
    own.kill()
    again = server_in(tmp_path)
    assert again.openai.files.retrieve(uploaded.id).bytes == uploaded.bytes
    done = until(lambda: has_succeeded(again, job), "the end")
    assert steps_of(again, job) == list(range(40, 0, -1)), "no step is told twice"
    events = again.openai.fine_tuning.jobs.list_events(job.id, limit=1000).data
    messages = {event.message for event in events}
    put_back = "queued again: its process ended before its training did"
    assert {put_back, "training goes on"} <= messages
    answer = ask(again, done.fine_tuned_model, "Log: x", max_tokens=4)
    assert answer.model == done.fine_tuned_model
