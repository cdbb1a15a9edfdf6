"""Replicas on a real Ray cluster of two nodes on one machine: routing, one ledger, losses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from ray.cluster_utils import Cluster

import greenllm
from evals.studies.replicas import busiest

if TYPE_CHECKING:
    from tests.service.conftest import Server, StartServer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
BUNDLED = Path(greenllm.__file__).parent / "model" / "bundled"
LONG: dict[str, Any] = {"temperature": 0, "max_tokens": 600, "ignore_eos": True}
OPTIONS = ("--replicas", "2", "--max-num-seqs", "2", "--drain-timeout-s", "5")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head and a second node, each with room for one replica."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        each = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=each)
        cluster.add_node(**each)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    make_adapter(BUNDLED, root / "fox", seed=1, std=0.2, r=8, target_modules="all-linear")
    return root


@pytest.fixture(scope="module")
def served(nodes: Cluster, start_server: StartServer, shelf: Path) -> Iterator[Server]:
    where = ("--cluster", nodes.address, "--adapter-dirs", str(shelf))
    with start_server(*OPTIONS, *where) as server:
        yield server
    assert server.process.returncode == 0
    with server.ledger() as ledger:
        sessions = ledger.sessions()
        sums_j = [ledger.session_sum_j(one.session_id) for one in sessions]
    assert all(one.closed for one in sessions)
    for one, sum_j in zip(sessions, sums_j, strict=True):
        assert one.totals.residual <= 1e-6
        assert sum_j == pytest.approx(one.totals.requests_j, rel=1e-6, abs=1e-9)


def ask(server: Server, text: str, *, session: str | None = None, **more: Any) -> httpx.Response:
    headers = {} if session is None else {"X-Session-Id": session}
    return server.http.post("/v1/chat/completions", json=server.chat(text, **more), headers=headers)


def all_at_once(server: Server, number: int, *, stream: bool) -> list[tuple[int, str]]:
    """Status and text of so many long requests; every one has to have an answer."""

    def one(index: int) -> tuple[int, str]:
        answer = ask(server, f"Tell story {index}.", stream=stream, **LONG)
        return answer.status_code, answer.text

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def replicas(server: Server) -> list[str]:
    names: list[str] = server.http.get("/ready").json()["replicas"]
    return names


def at_work(server: Server) -> bool:
    """Whether both replicas have told what to book should they die, and that it is something."""
    with contextlib.closing(sqlite3.connect(server.data_dir / "ledger.sqlite")) as db:
        told = db.execute("SELECT if_lost FROM sessions WHERE NOT closed AND if_lost NOT NULL")
        notes = [json.loads(note) for (note,) in told]
        settled = {row[0] for row in db.execute("SELECT request_id FROM requests")}
    open_j: list[float] = [
        sum(one.get("active_j") or 0.0 for one in note if one["request_id"] not in settled)
        for note in notes
    ]
    return sum(joules > 0.01 for joules in open_j) == 2


def test_requests_fill_one_replica_and_then_the_other(served: Server) -> None:
    assert len(replicas(served)) == 2
    alone = {ask(served, f"Hello {i}").headers["x-replica"] for i in range(4)}
    assert len(alone) == 1

    def who(index: int) -> str:
        answer = ask(served, f"Tell story {index}.", **LONG)
        name: str = answer.headers["x-replica"]
        return name

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(who, range(8)))
    assert set(names) == set(replicas(served))


def test_a_session_stays_where_it_is(served: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(ask, served, f"Story {i}", **LONG) for i in range(2)]
        first = ask(served, "Hi.", session="anna", max_tokens=4).headers["x-replica"]
        assert {one.result().status_code for one in busy} == {200}
    again = [ask(served, f"{i}?", session="anna").headers["x-replica"] for i in range(4)]
    assert again == [first] * 4


def test_the_official_client_sees_one_server(served: Server) -> None:
    assert [model.id for model in served.openai.models.list()] == ["bundled"]
    stream = served.openai.chat.completions.create(
        model="bundled",
        messages=[{"role": "user", "content": "Who are you?"}],
        temperature=0,
        stream=True,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    whole = ask(served, "Who are you?", temperature=0).json()
    assert text == whole["choices"][0]["message"]["content"]
    assert ask(served, "Hi", tempreature=1).status_code == 400
    assert served.http.get("/nowhere").status_code == 404


def test_every_replica_is_in_one_ledger(served: Server) -> None:
    before = served.http.get("/v1/energy").json()
    statuses = all_at_once(served, 8, stream=False)
    assert [status for status, _ in statuses] == [200] * 8
    body = ask(served, "Hi").json()
    receipt = served.http.get(f"/v1/energy/{body['id']}").json()
    assert receipt["energy_joules"] == body["usage"]["energy"]["energy_joules"]
    after = served.http.get("/v1/energy").json()
    assert after["data"][0]["requests"] == before["data"][0]["requests"] + 9
    assert after["session"]["residual"] <= 1e-6
    told = {name for name in served.metrics() if name.startswith("greenllm_meter_joules_total")}
    assert told == {f'greenllm_meter_joules_total{{replica="{n}"}}' for n in replicas(served)}


def test_an_adapter_comes_to_every_replica_and_goes(served: Server, shelf: Path) -> None:
    body = {"lora_name": "fox", "lora_path": str(shelf / "fox")}
    loaded = served.http.post("/v1/load_lora_adapter", json=body)
    assert loaded.status_code == 200, loaded.text
    assert loaded.headers["x-replica"] == ", ".join(replicas(served))

    def adapted(index: int) -> tuple[int, str]:
        answer = served.http.post(
            "/v1/chat/completions",
            json=served.chat(f"{index}", **{**LONG, "max_tokens": 150}) | {"model": "fox"},
        )
        return answer.status_code, answer.headers["x-replica"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(adapted, range(8)))
    assert {status for status, _ in answers} == {200}
    assert {name for _, name in answers} == set(replicas(served))
    assert served.http.post("/v1/load_lora_adapter", json=body).status_code == 400
    gone = served.http.post("/v1/unload_lora_adapter", json={"lora_name": "fox"})
    assert gone.status_code == 200
    assert adapted(0)[0] == 404


def test_what_needs_one_server_is_refused_by_name(served: Server) -> None:
    answer = served.http.post("/v1/fine_tuning/jobs", json={})
    assert answer.status_code == 400
    assert "/v1/fine_tuning/jobs" in answer.json()["error"]["message"]


def test_a_killed_replica_loses_no_request_without_an_answer(
    served: Server, until: Callable[..., Any]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        streams = pool.submit(all_at_once, served, 4, stream=True)
        answers = pool.submit(all_at_once, served, 4, stream=False)
        until(lambda: at_work(served), "both replicas at work")
        os.kill(busiest(os.getpid()), signal.SIGKILL)
    assert [status for status, _ in answers.result()] == [200] * 4
    for status, text in streams.result():
        assert status == 200
        assert text.endswith("data: [DONE]\n\n") != ("replica_lost" in text)
    lost = until(lambda: served.rows(outcome="lost"), "receipts of the lost work")
    assert all(row.status == "final" for row in lost)
    assert sum(row.total_j or 0.0 for row in lost) > 0
    assert served.http.get("/v1/energy").json()["session"]["residual"] <= 1e-6
    until(lambda: len(replicas(served)) == 2, "the replica's successor")


def test_a_lost_node_loses_no_request_without_an_answer(
    served: Server, nodes: Cluster, until: Callable[..., Any]
) -> None:
    already = len(served.rows(outcome="lost"))
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(all_at_once, served, 8, stream=False)
        until(lambda: at_work(served), "both replicas at work")
        nodes.remove_node(next(n for n in nodes.list_all_nodes() if not n.is_head()), False)
    assert [status for status, _ in answers.result()] == [200] * 8
    until(lambda: len(served.rows(outcome="lost")) > already, "receipts of the lost work")
    assert served.http.get("/v1/energy").json()["session"]["residual"] <= 1e-6


def test_a_cluster_that_is_not_there_is_one_sentence(
    greenllm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    where = ("--cluster", "127.0.0.1:1", "--port", "0", "--data-dir", str(tmp_path))
    said = greenllm("serve", "--replicas", "2", *where)
    assert said.returncode != 0
    assert "--cluster" in said.stderr
    assert "Traceback" not in said.stderr
