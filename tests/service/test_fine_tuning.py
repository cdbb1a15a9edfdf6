"""The fine-tuning API with the official client: upload, train, pause, restart, use."""

from __future__ import annotations

import http.client
import io
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
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
    with pytest.raises(openai.BadRequestError, match="is paused"):
        trainer.openai.fine_tuning.jobs.pause(job.id)
    trainer.openai.fine_tuning.jobs.resume(job.id)
    done = wait(trainer, job.id, "succeeded")
    events = trainer.openai.fine_tuning.jobs.list_events(job.id, limit=1000).data
    messages = [event.message for event in events if event.type == "message"]
    assert messages == [
        "succeeded", "training goes on", "resumed", "paused", "training started", "created",
    ]  # fmt: skip
    assert done.trained_tokens > 40 * 8 * 50


def test_a_cancelled_job_ends(trainer: Any, file_id: str) -> None:
    running = create(trainer, file_id, recipe={"steps": 500})
    waiting = create(trainer, file_id)
    assert trainer.openai.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
    wait_for_step(trainer, running.id, 1)
    trainer.openai.fine_tuning.jobs.cancel(running.id)
    deadline_s = time.monotonic() + 30
    while (job := trainer.openai.fine_tuning.jobs.retrieve(running.id)).status == "running":
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert job.status == "cancelled"
    assert job.model_extra["energy"]["energy_joules"] > 0, "what was spent stays on its bill"
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        trainer.openai.fine_tuning.jobs.cancel(running.id)


def test_a_broken_line_is_named_in_the_jobs_error(trainer: Any) -> None:
    broken = io.BytesIO(b'{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    broken.name = "broken.jsonl"
    uploaded = trainer.openai.files.create(file=broken, purpose="fine-tune")
    job = create(trainer, uploaded.id)
    deadline_s = time.monotonic() + 60
    while (job := trainer.openai.fine_tuning.jobs.retrieve(job.id)).status != "failed":
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert "training.jsonl:2 is not JSON" in job.error.message
    assert job.error.param == "training_file"
    assert job.fine_tuned_model is None


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


def test_files_come_and_go(trainer: Any) -> None:
    text = b'{"text": "a"}\n'
    file = io.BytesIO(text)
    file.name = "../../a.jsonl"
    uploaded = trainer.openai.files.create(file=file, purpose="fine-tune")
    assert uploaded.filename == "a.jsonl"
    assert trainer.openai.files.content(uploaded.id).read() == text
    assert uploaded.id in {found.id for found in trainer.openai.files.list()}
    assert trainer.openai.files.delete(uploaded.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        trainer.openai.files.retrieve(uploaded.id)


def test_two_jobs_with_one_suffix_are_two_models(trainer: Any, file_id: str) -> None:
    recipe = {"steps": 3, "answers": 0}
    twins = [create(trainer, file_id, suffix="twin", recipe=recipe, seed=i) for i in (1, 2)]
    done = [wait(trainer, job.id, "succeeded") for job in twins]
    names = [job.fine_tuned_model for job in done]
    assert len(set(names)) == 2
    assert all(name.startswith("ft:bundled:twin:") for name in names)
    listed = {model.id for model in trainer.openai.models.list().data}
    assert set(names) <= listed


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


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"model": "gpt-4o"}, "model"),
        ({"training_file": "file-000000000000000000000000"}, "training_file"),
        ({"training_file": "../../etc/passwd"}, "training_file"),
        ({"suffix": "a/b"}, "suffix"),
        ({"method": {"type": "reinforcement"}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method"),
        ({"method": {"type": "dpo"}, "recipe": {"objective": "sft"}}, "recipe.objective"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}},
            "method.dpo.hyperparameters.beta",
        ),
        ({"recipe": {"method": "full"}}, "recipe.method"),
        ({"recipe": {"method ": "full"}}, "recipe.method "),
        ({"recipe": {"steps = 1\nteacher": "x"}}, "recipe.steps = 1\nteacher"),
        ({"recipe": {"stepps": 4}}, "recipe.stepps"),
        ({"recipe": {"rank": 0}}, "recipe.rank"),
        ({"recipe": {"rank": "many"}}, "recipe.rank"),
        ({"recipe": {"seed": 1}}, "recipe.seed"),
        ({"recipe": {"objective": "dpo"}}, "recipe.objective"),
        ({"recipe": {"patience": 2}}, "recipe.patience"),
        ({"recipe": {"epochs": 2}, "hyperparameters": {"n_epochs": 2}}, "recipe.epochs"),
        ({"recipe": {"probe": "/etc/passwd"}}, "recipe.probe"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"recipe": {"output": "/tmp/x"}}, "recipe.output"),
        ({"magic": 1}, "magic"),
    ],
)
def test_what_a_job_cannot_be_is_refused_by_name(
    trainer: Any, file_id: str, given: dict[str, Any], param: str
) -> None:
    body = {"model": "bundled", "training_file": file_id, **given}
    answer = trainer.http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_uploads_that_cannot_be_kept_are_refused(trainer: Any) -> None:
    def post(**form: Any) -> Any:
        return trainer.http.post("/v1/files", **form)

    file = {"file": ("a.jsonl", b"{}")}
    assert post(files=file, data={"purpose": "batch"}).json()["error"]["param"] == "purpose"
    assert post(files={"file": (None, "text")}, data={"purpose": "fine-tune"}).status_code == 400
    assert post(files=file, data={"purpose": "fine-tune", "x": "1"}).status_code == 400
    raw = http.client.HTTPConnection("127.0.0.1", trainer.port, timeout=20)
    raw.putrequest("POST", "/v1/files")
    raw.putheader("Content-Type", "multipart/form-data; boundary=x")
    raw.putheader("Content-Length", str(10**10))
    raw.endheaders()
    assert raw.getresponse().status == 413, "before anything is sent"
    raw.close()


def test_unknown_jobs_are_not_found(trainer: Any) -> None:
    for path in ("", "/events", "/checkpoints"):
        answer = trainer.http.get(f"/v1/fine_tuning/jobs/ftjob-{'0' * 24}{path}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "job_not_found"
    for action in ("pause", "resume", "cancel"):
        answer = trainer.http.post(f"/v1/fine_tuning/jobs/ftjob-{'0' * 24}/{action}")
        assert answer.json()["error"]["code"] == "job_not_found"
    outside = trainer.http.post("/v1/fine_tuning/jobs/..%2F..%2Fx/pause")
    assert outside.status_code == 404


def test_jobs_are_listed_newest_first(trainer: Any) -> None:
    found = list(trainer.openai.fine_tuning.jobs.list(limit=2))
    assert len(found) >= 4, "the client follows the pages"
    assert [job.created_at for job in found] == sorted(
        (job.created_at for job in found), reverse=True
    )
