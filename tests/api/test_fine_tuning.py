"""Files and fine-tuning jobs; the processes that train are real, what they do is not."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.waiting import until

if TYPE_CHECKING:
    from tests.api.conftest import App, StartApp

pytestmark = pytest.mark.usefixtures("fake_training")
JOBS, FILES = "/v1/fine_tuning/jobs", "/v1/files"
ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
ENDLESS = {"steps": 10**5}
MOVING = ("queued", "running", "paused")


@pytest.fixture(scope="module")
def trainer(start_app: StartApp, fake_training: None) -> App:
    return start_app(max_file_mb=0.1)


@pytest.fixture(scope="module")
def file_id(trainer: App) -> str:
    return upload(trainer, *ROWS)


def upload(server: App, *rows: dict[str, Any] | str, name: str = "rows.jsonl") -> str:
    """A file of such lines; its id."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file = io.BytesIO("\n".join(lines).encode())
    file.name = name
    return str(server.openai.files.create(file=file, purpose="fine-tune").id)


def create(server: App, file_id: str, **more: Any) -> Any:
    recipe = {"steps": 8, **more.pop("recipe", {})}
    return server.openai.fine_tuning.jobs.create(
        model="bundled", training_file=file_id, extra_body={"recipe": recipe}, **more
    )


def wait(server: App, job: Any, status: str) -> Any:
    def found() -> Any:
        now = server.openai.fine_tuning.jobs.retrieve(job.id)
        assert now.status in (status, *MOVING), now.error
        return now if now.status == status else None

    return until(found, status)


def events(server: App, job: Any) -> list[Any]:
    """Newest first."""
    return list(server.openai.fine_tuning.jobs.list_events(job.id, limit=1000).data)


def messages(server: App, job: Any) -> list[str]:
    return [event.message for event in events(server, job) if event.type == "message"]


def wait_for_step(server: App, job: Any, step: int) -> None:
    def has_come() -> bool:
        told = [event.data for event in events(server, job) if event.type == "metrics"]
        return any(data["step"] >= step for data in told)

    until(has_come, f"step {step}")


def test_a_job_ends_as_a_model_that_answers(trainer: App, file_id: str) -> None:
    before = len(trainer.followed)
    job = create(
        trainer, file_id, suffix="household", seed=3, metadata={"for": "test"},
        hyperparameters={"n_epochs": 3},
    )  # fmt: skip
    assert job.status == "queued"
    assert job.hyperparameters.n_epochs == 3
    done = wait(trainer, job, "succeeded")
    assert done.fine_tuned_model == f"ft:bundled:household:{job.id[-8:]}"
    assert (done.trained_tokens, done.seed, done.metadata) == (80, 3, {"for": "test"})
    assert (done.error, done.finished_at >= done.created_at) == (None, True)
    energy = done.model_extra["energy"]
    assert (energy["energy_joules"], energy["by_phase_joules"]) == (8.0, {"training": 8.0})
    assert energy["operational_gco2e"] == 0.5
    assert trainer.followed[before:] == [True, False], "the meter is told what trains"
    answer = trainer.openai.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "Hi"}], max_tokens=4
    )
    assert answer.model == done.fine_tuned_model
    row = trainer.row(answer.id)
    assert row.adapter == done.fine_tuned_model.replace(":", ".")
    assert messages(trainer, job) == ["succeeded", "training started", "created"]
    told = [event.data for event in events(trainer, job) if event.type == "metrics"]
    assert [data["step"] for data in told] == list(range(8, 0, -1))
    assert (told[0]["train_loss"], told[0]["valid_loss"]) == (1 / 8, 2 / 8)
    kept = trainer.openai.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [found.step_number for found in kept] == [8, 4]
    assert kept[0].metrics.train_loss == 1 / 8
    assert kept[0].metrics.full_valid_loss == 2 / 8


def test_what_was_asked_is_what_is_run(trainer: App, file_id: str) -> None:
    job = create(
        trainer, file_id, validation_file=file_id, seed=5,
        recipe={"rank": 2, "targets": ["q_proj"]},
        method={"type": "dpo", "dpo": {"hyperparameters": {
            "n_epochs": 2, "batch_size": 3, "learning_rate_multiplier": 0.5, "beta": 0.3,
        }}},
    )  # fmt: skip
    assert (job.method.type, job.method.dpo.hyperparameters.beta) == ("dpo", 0.3)
    folder = trainer.data_dir / "fine_tuning" / job.id
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    asked = {
        "model": "bundled", "objective": "dpo", "epochs": 2, "batch_size": 3,
        "rate_multiplier": 0.5, "beta": 0.3, "seed": 5, "rank": 2, "targets": ["q_proj"],
        "steps": 8, "device": "cpu", "meter": "modelled", "bill_idle": False,
    }  # fmt: skip
    assert {name: recipe[name] for name in asked} == asked
    for name, file in (("data", "training.jsonl"), ("validation", "validation.jsonl")):
        assert Path(recipe[name]).name == file
        assert Path(recipe[name]).read_text() == "\n".join(map(json.dumps, ROWS))
    wait(trainer, job, "succeeded")


def assert_told_once(server: App, job: Any) -> None:
    told = [event.data["step"] for event in events(server, job) if event.type == "metrics"]
    assert told == list(range(len(told), 0, -1))


def test_jobs_are_paused_resumed_and_cancelled(trainer: App, file_id: str) -> None:
    jobs: Any = trainer.openai.fine_tuning.jobs
    job = create(trainer, file_id, recipe=ENDLESS)
    wait_for_step(trainer, job, 5)
    waiting, unwanted = create(trainer, file_id), create(trainer, file_id)
    assert jobs.pause(waiting.id).status == "paused"
    assert jobs.cancel(unwanted.id).status == "cancelled"
    jobs.pause(job.id)
    steps = wait(trainer, job, "paused").model_extra["energy"]["energy_joules"]
    assert steps >= 5
    with pytest.raises(openai.BadRequestError, match="is paused"):
        jobs.pause(job.id)
    jobs.resume(job.id)
    with pytest.raises(openai.BadRequestError, match=r"is (queued|running), not paused"):
        jobs.resume(job.id)
    wait_for_step(trainer, job, int(steps) + 1)
    jobs.cancel(job.id)
    spent = wait(trainer, job, "cancelled").model_extra["energy"]["energy_joules"]
    assert spent > steps, "what was spent stays on its bill"
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        jobs.cancel(job.id)
    assert messages(trainer, job) == [
        "cancelled", "training goes on", "resumed", "paused", "training started", "created",
    ]  # fmt: skip
    assert_told_once(trainer, job)
    jobs.resume(waiting.id)
    wait(trainer, waiting, "succeeded")


@pytest.mark.parametrize(
    ("rows", "message", "param", "joules"),
    [
        ((ROWS[0], '{"prompt": '), "training.jsonl:2 is not JSON", "training_file", None),
        (({"diverge": 1},), "the loss is nan", None, 1.0),
        (({"die": 1},), "the training process ended with code 3; see log.txt", None, None),
    ],
)
def test_a_failed_job_says_why(
    trainer: App, rows: tuple[Any, ...], message: str, param: str | None, joules: float | None
) -> None:
    job = wait(trainer, create(trainer, upload(trainer, *rows)), "failed")
    assert job.error.message == message, "without the folders of the server"
    assert (job.error.param, job.fine_tuned_model) == (param, None)
    energy = job.model_extra["energy"]
    assert (energy and energy["energy_joules"]) == joules
    assert events(trainer, job)[0].level == "error"


def test_a_job_goes_on_when_its_server_is_back(start_app: StartApp) -> None:
    first = start_app()
    job = create(first, upload(first, *ROWS), recipe=ENDLESS)
    wait_for_step(first, job, 3)
    first.stop()
    again = start_app(folder=first.data_dir)
    wait_for_step(again, job, len(events(again, job)) + 1)
    again.openai.fine_tuning.jobs.cancel(job.id)
    wait(again, job, "cancelled")
    put_back = "queued again: its process ended before its training did"
    assert messages(again, job) == [
        "cancelled", "training goes on", put_back, "training started", "created",
    ]  # fmt: skip
    assert_told_once(again, job)


def test_two_jobs_with_one_suffix_are_two_models(trainer: App, file_id: str) -> None:
    twins = [create(trainer, file_id, suffix="twin") for _ in range(2)]
    names = {wait(trainer, job, "succeeded").fine_tuned_model for job in twins}
    assert len(names) == 2
    assert all(name.startswith("ft:bundled:twin:") for name in names)
    assert names <= {model.id for model in trainer.openai.models.list().data}
    for name in names:
        assert trainer.openai.models.retrieve(name).id == name


NOWHERE = "file-000000000000000000000000"
BETA: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}
TWICE: Any = {"supervised": {"hyperparameters": {}}}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"model": "gpt-4o"}, "model"),
        ({"training_file": NOWHERE}, "training_file"),
        ({"training_file": "../../etc/passwd"}, "training_file"),
        ({"validation_file": NOWHERE}, "validation_file"),
        ({"suffix": "a/b"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"method": {"type": "reinforcement"}}, "method.type"),
        ({"method": {"reinforcement": {}}}, "method.reinforcement"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method"),
        ({"method": {"type": "dpo"}, "recipe": {"objective": "sft"}}, "recipe.objective"),
        ({"method": BETA}, "method.dpo.hyperparameters.beta"),
        ({"method": TWICE, "hyperparameters": {}}, "hyperparameters"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 2}, "recipe": {"epochs": 2}}, "recipe.epochs"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"magic": 1}, "magic"),
        *(
            ({"recipe": {name: value}}, f"recipe.{name}")
            for name, value in (
                ("method", "full"), ("method ", "full"), ("steps = 1\nteacher", "x"), ("stepps", 4),
                ("rank", 0), ("rank", "many"), ("seed", 1), ("objective", "dpo"), ("patience", 2),
                ("probe", "/etc/passwd"), ("output", "/tmp/x"),
            )
        ),
    ],
)  # fmt: skip
def test_what_a_job_cannot_be_is_refused_by_name(
    trainer: App, file_id: str, given: dict[str, Any], param: str
) -> None:
    body = {"model": "bundled", "training_file": file_id, **given}
    answer = trainer.http.post(JOBS, json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_unknown_jobs_are_not_found(trainer: App) -> None:
    unknown = f"{JOBS}/ftjob-{'0' * 24}"
    for path in ("", "/events", "/checkpoints"):
        answer = trainer.http.get(unknown + path)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "job_not_found"
    for action in ("pause", "resume", "cancel"):
        answer = trainer.http.post(f"{unknown}/{action}")
        assert answer.json()["error"]["code"] == "job_not_found"
    assert trainer.http.post(f"{JOBS}/..%2F..%2Fx/pause").status_code == 404


def test_jobs_are_listed_newest_first_page_by_page(start_app: StartApp) -> None:
    server = start_app()
    file_id = upload(server, *ROWS)
    made = [create(server, file_id, recipe=ENDLESS).id for _ in range(5)]
    found = [job.id for job in server.openai.fine_tuning.jobs.list(limit=2)]
    assert found == made[::-1], "the client follows the pages, also within one second"
    page = server.http.get(JOBS, params={"limit": 2}).json()
    assert (len(page["data"]), page["has_more"]) == (2, True)
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after": "ftjob-x"}):
        answer = server.http.get(JOBS, params=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(wrong)))
    for job_id in made:
        server.openai.fine_tuning.jobs.cancel(job_id)


def test_files_come_and_go(trainer: App) -> None:
    file_id = upload(trainer, {"text": "a"}, name="../../a.jsonl")
    files = trainer.openai.files
    found = files.retrieve(file_id)
    assert (found.filename, found.purpose, found.bytes) == ("a.jsonl", "fine-tune", 13)
    assert files.content(file_id).read() == b'{"text": "a"}'
    page = trainer.http.post(
        "/v1/files",
        data={"purpose": "fine-tune"},
        files={"file": ("page.html", b'{"text": "<script>"}', "text/html")},
    ).json()["id"]
    answer = trainer.http.get(f"/v1/files/{page}/content")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert trainer.http.delete(f"/v1/files/{page}").status_code == 200
    later = upload(trainer, {"text": "b"})
    assert [found.id for found in files.list()][:2] == [later, file_id]
    assert files.delete(file_id).deleted
    assert file_id not in {found.id for found in files.list()}
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        files.retrieve(file_id)
    for method, path in (("GET", "/content"), ("DELETE", "")):
        answer = trainer.http.request(method, f"{FILES}/{file_id}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")


FILE: dict[str, Any] = {"files": {"file": ("a.jsonl", b"{}")}}
PURPOSE = {"purpose": "fine-tune"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("form", "status", "param"),
    [
        ({**FILE, "data": {"purpose": "batch"}}, 400, "purpose"),
        (FILE, 400, "purpose"),
        ({**FILE, "data": {**PURPOSE, "x": "1"}}, 400, "x"),
        ({"files": {"file": (None, "text")}, "data": PURPOSE}, 400, "file"),
        ({"files": {"file": ("a" * 256, b"{}")}, "data": PURPOSE}, 400, "file"),
        ({"files": {"file": ("a", b" " * 100_001)}, "data": PURPOSE}, 413, "file"),
        ({"content": b"--x", "headers": {**FORM, "Content-Length": "3"}}, 400, "purpose"),
        ({"content": iter([b"x"]), "headers": FORM}, 411, None),
        ({"content": b"", "headers": {**FORM, "Content-Length": str(10**10)}}, 413, "file"),
        ({"files": {"file": ("a" * 513, b"{}")}, "data": PURPOSE}, 400, "file"),
    ],
)
def test_uploads_that_cannot_be_kept_are_refused(
    trainer: App, form: dict[str, Any], status: int, param: str | None
) -> None:
    before = trainer.http.get(FILES).json()["data"]
    refused = trainer.http.post(FILES, **form)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)
    assert trainer.http.get(FILES).json()["data"] == before
