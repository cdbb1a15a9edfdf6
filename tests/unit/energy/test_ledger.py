"""The ledger keeps every row and the totals they add up to, whatever happens to file or process."""

import math
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.energy import ledger_connection
from greenllm.energy import ledger_rows as rows
from greenllm.energy import ledger_schema as schema
from greenllm.energy import ledger_writer as writer
from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import GroupSums, Ledger
from greenllm.energy.ledger_connection import LedgerConnection
from greenllm.energy.ledger_schema import LedgerError
from greenllm.energy.receipt import Receipt
from tests.unit.energy.rig import make_receipt
from tests.waiting import PATIENCE_S, until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path)
    opened.open_session("s", method="measured:x", measured=True)
    yield opened
    opened.close()


def test_a_new_file_is_migrated_to_the_newest_schema_in_wal_mode(path: Path) -> None:
    Ledger(path).close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_an_older_file_gets_the_missing_migrations_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(path).close()

    def add_note(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE requests ADD COLUMN note TEXT")

    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, add_note])
    for _ in range(2):
        Ledger(path).close()
    db = sqlite3.connect(path)
    assert "note" in [row[1] for row in db.execute("PRAGMA table_info(requests)")]
    assert db.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    db.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_schema_is_refused_and_not_touched(path: Path, read_only: bool) -> None:
    Ledger(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"newer greenllm \(schema 99\).*--data-dir"):
        Ledger(path, read_only=read_only)
    assert path.read_bytes() == before


def test_reading_an_older_file_says_what_brings_it_up_to_date(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        Ledger(path).close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"of an older greenllm; `greenllm serve` brings"):
        Ledger(path, read_only=True)
    assert path.read_bytes() == before
    Ledger(path).close()
    Ledger(path, read_only=True).close()


def test_sessions_know_the_size_of_their_model(ledger: Ledger) -> None:
    ledger.open_session("t", method="x", measured=True, parameters=2_600_000)
    assert [session.parameters for session in ledger.sessions()] == [None, 2_600_000]
    ledger.record("t", [make_receipt("a"), make_receipt("b", status="unmetered")])
    assert ledger.model_sizes() == {2_600_000}
    ledger.record("s", [make_receipt("c")])
    assert ledger.model_sizes() == {None, 2_600_000}
    assert ledger.model_sizes(since_s=1e11) == set()


def test_a_receipt_comes_back_as_it_was(ledger: Ledger) -> None:
    full = make_receipt(
        "a",
        adapter="lora",
        key="k",
        team="t",
        user="u",
        metadata={"for": "test"},
        endpoint="/v1/x",
        http_status=200,
        domains_j={"cpu": 2.5, "gpu": 0.5},
        prefill_j=1.5,
        decode_j=0.5,
        flops=1e15,
        uncertainty=0.2,
        attribution="ok",
        operational_g=0.1,
        embodied_g=0.05,
        intensity_g_per_kwh=360.0,
        intensity_zone="XXX",
        intensity_source="a source",
        intensity_year=2025,
        pue=1.2,
        measured=False,
    )
    unknown = make_receipt("b", active_j=None, idle_j=None, status="unmetered")
    ledger.record("s", [full, unknown])
    assert ledger.receipt("a") == full
    assert ledger.receipt("b") == unknown
    assert ledger.receipt("c") is None


def test_provisional_becomes_final_and_never_goes_back(ledger: Ledger) -> None:
    provisional = make_receipt("a", status="provisional", active_j=9.0)
    final = make_receipt("a", status="final", active_j=2.0)
    for receipt in (provisional, replace(provisional, active_j=8.0), final, provisional):
        ledger.record("s", [receipt])
    assert ledger.receipt("a") == final
    assert ledger.session_sum_j("s") == 3.0
    assert len(ledger.receipts()) == 1


def test_the_status_that_was_sent_stays(ledger: Ledger) -> None:
    ledger.record("s", [make_receipt("a", status="provisional", http_status=200)])
    ledger.record("s", [make_receipt("a", http_status=None)])
    found = ledger.receipt("a")
    assert found is not None
    assert (found.status, found.http_status) == ("final", 200)


def test_a_batch_may_hold_both_states_of_a_receipt(ledger: Ledger) -> None:
    final = make_receipt("a")
    ledger.record("s", [replace(final, status="provisional", active_j=7.0), final])
    assert ledger.receipt("a") == final


def test_sums_per_group(ledger: Ledger) -> None:
    ledger.record(
        "s",
        [
            make_receipt(
                "1", model="a", active_j=1.0, idle_j=0.5, operational_g=0.2, embodied_g=0.05
            ),
            make_receipt(
                "2", model="a", active_j=2.0, idle_j=0.5, operational_g=0.5, embodied_g=0.0
            ),
            make_receipt(
                "3", model="b", status="provisional", adapter="x", key="k", team="t", user="u"
            ),
        ],
    )
    assert ledger.sums("model") == [
        GroupSums("a", 2, 20, 10, 3.0, 4.0, 0.75, 0, 1.0, None, None, 0.0, 10),
        GroupSums("b", 1, 10, 5, None, None, None, 1),
    ]
    total = GroupSums(None, 3, 30, 15, 3.0, 4.0, 0.75, 1, 1.0, None, None, 0.0, 10)
    assert ledger.sums() == [total]
    assert total.joules_per_token == 0.4
    assert ledger.sums(key="k") == [GroupSums(None, 1, 10, 5, None, None, None, 1)]
    assert {row.group: row.requests for row in ledger.sums("adapter")} == {None: 2, "x": 1}
    for name in ("key", "team", "user"):
        assert {row.group: row.requests for row in ledger.sums(name)} == {None: 2, name[0]: 1}
    assert [row.group for row in ledger.sums("outcome")] == ["completed"]
    assert [row.group for row in ledger.sums("endpoint")] == [""]


def test_sums_per_hour_are_utc_and_respect_the_period(ledger: Ledger) -> None:
    day_s = 1_767_225_600.0  # 2026-01-01T00:00Z
    times = [0.0, 3599.0, 3600.0, 86_400.0]
    ledger.record("s", [make_receipt(f"r{t}", created_s=day_s + t) for t in times])
    hours = {row.group: row.requests for row in ledger.sums("hour")}
    assert hours == {"2026-01-01T00:00Z": 2, "2026-01-01T01:00Z": 1, "2026-01-02T00:00Z": 1}
    assert ledger.sums(since_s=day_s + 3599, until_s=day_s + 86_400)[0].requests == 2
    period = ledger.receipts(since_s=day_s + 3599, until_s=day_s + 86_400)
    assert [receipt.request_id for receipt in period] == ["r3599.0", "r3600.0"]


def test_no_rows_are_no_sums(ledger: Ledger) -> None:
    assert ledger.receipts() == []
    assert ledger.sums("model") == ledger.sums() == []
    assert ledger.session_sum_j("s") == 0


def test_a_session_carries_the_totals_and_how_it_ended(ledger: Ledger) -> None:
    (fresh,) = ledger.sessions()
    assert (fresh.session_id, fresh.closed, fresh.totals) == ("s", False, Totals())
    assert (fresh.method, fresh.measured) == ("measured:x", True)
    totals = Totals(10.0, 1.0, 2.0, 3.0, 3.0, 1.0)
    ledger.record("s", [make_receipt()], totals)
    assert ledger.sessions()[0].totals == totals
    assert not ledger.sessions()[0].closed
    ledger.record("s", [], totals, closed=True)
    assert ledger.sessions()[0].closed
    assert ledger.sessions()[0].updated_s >= fresh.started_s


def test_sessions_are_apart(ledger: Ledger) -> None:
    ledger.open_session("t", method="modelled:y", measured=False)
    ledger.record("s", [make_receipt("1")], Totals(meter_j=3.0, requests_j=3.0))
    ledger.record("t", [make_receipt("2", active_j=5.0)], Totals(meter_j=6.0, requests_j=6.0))
    assert [session.session_id for session in ledger.sessions()] == ["s", "t"]
    assert [session.measured for session in ledger.sessions()] == [True, False]
    for session in ledger.sessions():
        assert ledger.session_sum_j(session.session_id) == session.totals.requests_j


@settings(max_examples=10)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=20))
def test_final_rows_add_up_to_the_sessions_requests(
    tmp_path_factory: pytest.TempPathFactory, bills: list[tuple[float, bool]]
) -> None:
    opened = Ledger(tmp_path_factory.mktemp("sum") / "ledger.db")
    opened.open_session("s", method="x", measured=True)
    totals = Totals()
    for number, (joules, is_final) in enumerate(bills):
        status = "final" if is_final else "provisional"
        totals.requests_j += joules if is_final else 0.0
        receipt = make_receipt(f"r{number}", status=status, active_j=joules, idle_j=0.0)
        opened.record("s", [receipt], totals)
    assert opened.session_sum_j("s") == pytest.approx(totals.requests_j)
    assert opened.sessions()[0].totals.requests_j == totals.requests_j
    opened.close()


@pytest.fixture
def held(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A ledger's file that is locked elsewhere, and what lets go of it."""
    monkeypatch.setattr(schema, "BUSY_S", 0.02)
    Ledger(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def let_go() -> None:
        other.execute("ROLLBACK")

    yield let_go
    other.close()


@pytest.fixture
def waiting(path: Path, held: Callable[[], None]) -> Iterator[Ledger]:
    """A ledger that cannot be written."""
    opened = Ledger(path)
    yield opened
    opened.close()


def ids(ledger: Ledger) -> list[str]:
    return [receipt.request_id for receipt in ledger.receipts()]


def test_rows_wait_while_the_database_is_locked(
    waiting: Ledger, held: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    waiting.record("s", [make_receipt("a")], Totals(requests_j=3.0))
    waiting.record("s", [make_receipt("b", status="provisional")])
    assert ids(waiting) == []
    assert waiting.receipt("a") == make_receipt("a"), "waiting rows are known all the same"
    assert (waiting.state.num_waiting, waiting.state.is_writable) == (2, False)
    with pytest.raises(LedgerError, match="cannot begin a session: database is locked"):
        waiting.open_session("t", method="x", measured=True)
    held()
    waiting.record("s", [make_receipt("b")], Totals(requests_j=6.0))
    until(lambda: ids(waiting) == ["a", "b"], "the rows in the file")
    assert waiting.receipt("b") == make_receipt("b")
    assert (waiting.state.num_waiting, waiting.state.is_writable) == (0, True)
    log = [record.getMessage().partition(".db: ")[2] for record in caplog.records]
    assert log == [
        "database is locked; rows wait until it can be written",
        "can be written again",
    ], "a line when it begins and one when it ends"


def test_who_records_does_not_write(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    real = rows.write

    def watched(*given: object, **named: object) -> list[str]:
        threads.add(threading.current_thread().name)
        return real(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "write", watched)
    ledger.record("s", [make_receipt("a")], Totals(requests_j=3.0))
    assert ids(ledger) == ["a"]
    assert threads == {"ledger"}


def test_who_records_waits_once_for_a_ledger_that_is_stuck(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    goes_on = threading.Event()
    real_write, real_wait = rows.write, threading.Condition.wait

    def stuck(*given: object, **named: object) -> list[str]:
        assert goes_on.wait(PATIENCE_S)
        return real_write(*given, **named)  # type: ignore[arg-type]

    def wait(condition: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread() and timeout is not None:
            waits.append(timeout)
        return real_wait(condition, timeout)

    monkeypatch.setattr(writer, "write", stuck)
    monkeypatch.setattr(threading.Condition, "wait", wait)
    ledger.record("s", [make_receipt("0")])
    assert len(waits) == 1, "the first is waited for, a moment"
    for number in range(1, 50):
        ledger.record("s", [make_receipt(str(number))])
    assert len(waits) == 1, "the others are not"
    goes_on.set()
    until(lambda: len(ids(ledger)) == 50, "all rows")


def test_rows_are_written_in_bounded_batches(
    waiting: Ledger, held: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = rows.write

    def watched(db: sqlite3.Connection, entries: list[rows.Entry]) -> list[str]:
        refused = real(db, entries)
        sizes.append(sum(len(entry.receipts) for entry in entries))
        return refused

    monkeypatch.setattr(writer, "write", watched)
    for number in range(300):
        waiting.record("s", [make_receipt(f"{number}.{part}") for part in range(3)])
    held()
    until(lambda: len(ids(waiting)) == 900, "the rows in the file")
    assert sum(sizes) == 900
    assert max(sizes) <= 256


def test_totals_that_wait_do_not_pile_up(waiting: Ledger, held: Callable[[], None]) -> None:
    waiting.record("s", [make_receipt("a")])
    for joules in range(1000):
        waiting.record("s", [], Totals(idle_j=float(joules)))
    assert waiting._writer is not None
    assert len(waiting._writer._waiting) == 1
    held()


def test_totals_of_several_sessions_do_not_pile_up_either(
    waiting: Ledger, held: Callable[[], None]
) -> None:
    """As those of replicas, which come in turns."""
    waiting.record("s", [make_receipt("a")])
    for joules in range(1000):
        for session_id in ("s", "t", "u"):
            waiting.record(session_id, [], Totals(idle_j=float(joules)))
    assert waiting._writer is not None
    assert len(waiting._writer._waiting) <= 4
    held()
    for session_id in ("s", "t", "u"):
        waiting.open_session(session_id, method="x", measured=True, is_own=False)
        waiting.record(session_id, [], Totals(idle_j=1000.0))
    assert [one.totals.idle_j for one in waiting.sessions()] == [1000.0] * 3
    assert ids(waiting) == ["a"]


def test_a_row_that_is_refused_blocks_no_others(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    impossible: list[Receipt] = [
        make_receipt("broken", domains_j={"cpu": object()}),
        make_receipt("huge", prompt_tokens=2**70),
        make_receipt("surrogate", key="\ud800"),
        make_receipt("null", created_s=None),
    ]
    for number, receipt in enumerate(impossible):
        ledger.record("s", [make_receipt(f"a{number}"), receipt, make_receipt(f"b{number}")])
    ledger.record("s", [make_receipt("c")], Totals(requests_j=27.0))
    assert set(ids(ledger)) == {
        *(f"{letter}{number}" for letter in "ab" for number in range(4)),
        "c",
    }
    assert ledger.session_sum_j("s") == ledger.sessions()[0].totals.requests_j == 27.0
    assert ledger.state.num_dropped == 4
    assert ledger.state.is_writable
    for receipt in impossible:
        assert f"refuses request {receipt.request_id}:" in caplog.text


def test_totals_that_are_refused_are_left_out_until_the_next(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Totals(meter_j=math.nan)  # NaN is NULL, which the column refuses
    ledger.record("s", [make_receipt("a")], broken)
    assert ids(ledger) == ["a"]
    assert "refuses totals of session s" in caplog.text
    ledger.record("s", [], Totals(requests_j=3.0))
    assert ledger.session_sum_j("s") == ledger.sessions()[0].totals.requests_j == 3.0


def test_rows_and_totals_are_written_together_or_not_at_all(
    path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full after the rows and before the totals."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TRIGGER full BEFORE UPDATE ON sessions BEGIN SELECT no_such_function(); END")
    ledger.record("s", [make_receipt("a")], Totals(requests_j=3.0))
    assert ids(ledger) == []
    db.execute("DROP TRIGGER full")
    db.close()
    until(lambda: ids(ledger) == ["a"], "the row in the file")
    assert ledger.session_sum_j("s") == ledger.sessions()[0].totals.requests_j == 3.0


def test_a_failed_commit_does_not_block_the_ledger_for_ever(path: Path, ledger: Ledger) -> None:
    def make_orphans(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        db.execute(
            "CREATE TABLE children (id REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)"
        )
        db.execute(
            "CREATE TRIGGER orphan AFTER INSERT ON requests"
            " WHEN NOT EXISTS (SELECT 1 FROM parents) BEGIN INSERT INTO children VALUES (1); END"
        )

    ledger._connection.write(lambda db: db.execute("PRAGMA foreign_keys = ON") and None)
    ledger._connection.write(make_orphans)
    ledger.record("s", [make_receipt("a")])
    assert ids(ledger) == []
    ledger._connection.write(lambda db: db.execute("INSERT INTO parents VALUES (1)") and None)
    ledger.record("s", [make_receipt("b")])
    until(lambda: set(ids(ledger)) == {"a", "b"}, "both rows")


def test_too_many_waiting_rows_drop_the_oldest(
    waiting: Ledger,
    held: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 2)
    for number in range(4):
        waiting.record("s", [make_receipt(str(number))])
    assert (waiting.state.num_waiting, waiting.state.num_dropped) == (2, 2)
    assert caplog.text.count("too many rows wait") == 1
    held()
    until(lambda: ids(waiting)[-2:] == ["2", "3"], "the rows that are left")
    assert waiting.state.num_waiting == 0


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_file_that_is_gone_is_noticed_and_begun_again(
    path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    ledger.open_session("t", method="measured:y", measured=False, parameters=7)
    ledger.record("s", [make_receipt("a")], Totals(meter_j=3.0, requests_j=3.0))
    ledger.record("t", [make_receipt("b")], Totals(meter_j=4.0, requests_j=4.0))
    assert ids(ledger) == ["a", "b"]
    moved = path.with_name("moved.db")
    path.unlink() if how == "deleted" else path.rename(moved)
    if how == "replaced":
        path.touch()
    ledger.record("s", [make_receipt("c")], Totals(meter_j=6.0, requests_j=6.0))
    assert ids(ledger) == ["c"]
    assert "was moved, deleted or replaced" in caplog.text
    found = {session.session_id: session for session in ledger.sessions()}
    assert found["s"].totals.requests_j == 6.0
    assert (found["t"].totals.requests_j, found["t"].parameters) == (4.0, 7)
    ledger.record("t", [make_receipt("d")])
    assert ids(ledger) == ["c", "d"]
    assert caplog.text.count("was moved") == 1
    if how == "moved":
        old = Ledger(moved, read_only=True)
        assert ids(old) == ["a", "b"]
        old.close()


def test_rows_wait_until_a_file_that_was_overwritten_is_moved_away(
    path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.record("s", [make_receipt("a")], Totals(meter_j=3.0, requests_j=3.0))
    with path.open("r+b") as file:
        file.write(b"garbage" * (path.stat().st_size // 7 + 1))
    ledger.record("s", [make_receipt("b")], Totals(meter_j=6.0, requests_j=6.0))
    until(lambda: not ledger.state.is_writable, "that it is noticed")
    assert "was overwritten with something else; move it away" in caplog.text
    assert ledger.receipt("b") == make_receipt("b")
    path.rename(path.with_name("garbage"))
    ledger.record("s", [make_receipt("c")], Totals(meter_j=9.0, requests_j=9.0))
    until(lambda: ledger.state.is_writable, "a new file")
    assert ids(ledger) == ["b", "c"]
    assert ledger.sessions()[0].totals.requests_j == 9.0


COUNT = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("SELECT count(*) FROM requests").fetchone()[0])
db.close()
"""


def test_another_process_that_lets_go_of_the_file_takes_no_rows_along(
    path: Path, ledger: Ledger
) -> None:
    """The last one to close a database deletes its log; it must see that this one has it open."""
    for count in (1, 2, 3):
        ledger.record("s", [make_receipt(str(count))])
        assert ids(ledger) == [str(number) for number in range(1, count + 1)]
        command = [sys.executable, "-c", COUNT, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) == count


def test_rows_wait_for_a_folder_that_is_gone(tmp_path: Path) -> None:
    folder, away = tmp_path / "data", tmp_path / "away"
    folder.mkdir()
    opened = Ledger(folder / "ledger.db")
    opened.open_session("s", method="x", measured=True)
    folder.rename(away)
    opened.record("s", [make_receipt("a")], Totals(requests_j=3.0))
    until(lambda: not opened.state.is_writable, "that it is noticed")
    assert opened.receipt("a") == make_receipt("a")
    folder.mkdir()
    until(lambda: opened.state.is_writable, "a new file")
    assert ids(opened) == ["a"]
    opened.close()


LOST = make_receipt("lost", outcome="lost", active_j=4.0, idle_j=1.0, completion_tokens=3)


def leave(ledger: Ledger) -> None:
    """What the kernel does for a killed process."""
    assert ledger._writer is not None
    assert ledger._writer.flush(PATIENCE_S)
    for lock in ledger._locks.values():
        lock.leave()
    ledger._connection.close()


def test_open_requests_of_a_killed_server_become_rows(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Ledger(path)
    dead.open_session("s", method="x", measured=True)
    totals = Totals(meter_j=12.0, idle_j=2.0, requests_j=3.0, open_j=7.0)
    dead.record("s", [make_receipt("a")], totals, if_lost=[LOST])
    leave(dead)
    ledger = Ledger(path)
    ledger.book_lost()
    assert ledger.receipt("lost") == LOST
    (session,) = ledger.sessions()
    assert session.closed
    assert session.totals == Totals(meter_j=12.0, idle_j=2.0, requests_j=8.0, open_j=2.0)
    assert ledger.session_sum_j("s") == session.totals.requests_j
    assert session.totals.residual == 0
    assert "session s was not closed: its process is gone, with 1 requests" in caplog.text
    ledger.book_lost()
    assert ledger.sessions() == [session], "once"
    assert list(path.parent.glob("*.lock")) == []
    ledger.close()


def test_who_lives_is_not_lost(path: Path, ledger: Ledger) -> None:
    ledger.record("s", [], Totals(open_j=5.0), if_lost=[LOST])
    other = Ledger(path)
    other.book_lost()
    assert other.receipt("lost") is None
    assert not other.sessions()[0].closed
    other.close()


def test_a_session_that_somebody_else_looks_after_is_left_alone(path: Path) -> None:
    dead = Ledger(path)
    dead.open_session("s", method="x", measured=True, is_own=False)
    leave(dead)
    ledger = Ledger(path)
    ledger.book_lost()
    assert not ledger.sessions()[0].closed
    ledger.close()


@pytest.mark.parametrize("status", ["final", "unmetered"])
def test_a_request_that_was_settled_since_the_note_is_not_lost(ledger: Ledger, status: str) -> None:
    settled = make_receipt("lost", status=status, active_j=6.0)
    ledger.record("s", [], Totals(meter_j=5.0, open_j=5.0), if_lost=[LOST])
    ledger.record("s", [settled], Totals(meter_j=7.0, requests_j=7.0))
    assert ledger.close_lost("s") == []
    assert ledger.receipt("lost") == settled
    assert ledger.sessions()[0].totals == Totals(meter_j=7.0, requests_j=7.0)


def test_a_client_that_had_its_answer_lost_nothing(ledger: Ledger) -> None:
    early = make_receipt("lost", status="provisional", http_status=200, completion_tokens=9)
    ledger.record("s", [], Totals(meter_j=5.0, open_j=5.0), if_lost=[LOST])
    ledger.record("s", [early], Totals(meter_j=6.0, open_j=6.0))
    assert ledger.close_lost("s") == ["lost"]
    found = ledger.receipt("lost")
    assert found is not None
    told = (found.status, found.outcome, found.http_status, found.completion_tokens)
    assert told == ("final", "completed", 200, 9)
    assert found.total_j == 5.0
    assert ledger.sessions()[0].totals == Totals(meter_j=6.0, requests_j=5.0, open_j=1.0)


def test_what_was_given_up_since_the_note_balances_too(ledger: Ledger) -> None:
    """The account gave its joules to nobody; the row has them, and the sum is the meter's."""
    ledger.record("s", [], Totals(meter_j=5.0, open_j=5.0), if_lost=[LOST])
    ledger.record("s", [], Totals(meter_j=6.0, unattributed_j=6.0))
    assert ledger.close_lost("s") == ["lost"]
    assert ledger.sessions()[0].totals == Totals(meter_j=6.0, requests_j=5.0, unattributed_j=1.0)


def test_a_session_that_closes_itself_has_lost_nothing(path: Path) -> None:
    own = Ledger(path)
    own.open_session("s", method="x", measured=True)
    own.record("s", [], Totals(open_j=5.0), if_lost=[LOST])
    own.record("s", [], Totals(), closed=True)
    own.close()
    assert list(path.parent.glob("*.lock")) == []
    ledger = Ledger(path)
    ledger.book_lost()
    assert ledger.receipts() == []
    ledger.close()


def test_a_session_that_could_not_be_closed_is_closed_by_the_next(path: Path) -> None:
    own = Ledger(path)
    own.open_session("s", method="x", measured=True)
    own.record("s", [], Totals(meter_j=5.0, open_j=5.0), if_lost=[LOST])
    own.close()
    ledger = Ledger(path)
    ledger.book_lost()
    assert ledger.sessions()[0].closed
    assert ledger.receipt("lost") == LOST
    ledger.close()


def test_two_that_start_at_once_book_what_is_lost_once(path: Path) -> None:
    dead = Ledger(path)
    for name in "stuv":
        dead.open_session(name, method="x", measured=True)
        lost = replace(LOST, request_id=name)
        dead.record(name, [], Totals(meter_j=5.0, open_j=5.0), if_lost=[lost])
    leave(dead)
    ledgers = [Ledger(path) for _ in range(3)]
    threads = [threading.Thread(target=ledger.book_lost) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    for session in ledgers[0].sessions():
        assert session.totals == Totals(meter_j=5.0, requests_j=5.0)
    for ledger in ledgers:
        ledger.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_corrupt_file_is_refused_and_left_as_it_is(path: Path, read_only: bool) -> None:
    path.write_bytes(b"these are not joules " * 500)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"ledger\.db: file is not a database; move the file"):
        Ledger(path, read_only=read_only)
    assert path.read_bytes() == before


def test_a_damaged_page_is_refused(path: Path) -> None:
    Ledger(path).close()
    data = bytearray(path.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    path.write_bytes(bytes(data))
    with pytest.raises(LedgerError, match="malformed"):
        Ledger(path)
    assert path.read_bytes() == bytes(data)


@pytest.mark.parametrize("folder", ["missing", "file", "/proc"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="unable to open database file"):
        Ledger(tmp_path / folder / "ledger.db")


def test_read_only_reads_what_another_writes_and_writes_nothing(ledger: Ledger, path: Path) -> None:
    reader = Ledger(path, read_only=True)
    ledger.record("s", [make_receipt("a")], Totals(requests_j=3.0))
    assert [receipt.request_id for receipt in reader.receipts()] == ["a"]
    assert reader.sums()[0].total_j == reader.sessions()[0].totals.requests_j == 3.0
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._query("DELETE FROM requests")
    with pytest.raises(LedgerError, match="was opened to be read"):
        reader.record("s", [make_receipt("b")])
    reader.close()


def test_read_only_makes_no_file(path: Path) -> None:
    with pytest.raises(LedgerError):
        Ledger(path, read_only=True)
    assert not path.exists()


@pytest.mark.parametrize("name", ["50% off.db", "what?mode=rw.db", "#1 ledger.db", "ü.db"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    opened = Ledger(tmp_path / name)
    opened.record("s", [make_receipt("a")])
    assert opened.receipt("a") is not None
    opened.close()


def test_a_reader_in_another_thread_always_sees_books_that_balance(ledger: Ledger) -> None:
    stop = threading.Event()
    seen: list[bool] = []
    sums: list[float] = []

    def read() -> None:
        while not stop.is_set() or not seen:
            rows_j = ledger.session_sum_j("s")
            totals_j = ledger.sessions()[0].totals.requests_j
            seen.append(rows_j <= totals_j)
            sums.append(rows_j)
            ledger.receipt("r5")

    thread = threading.Thread(target=read)
    thread.start()
    totals = Totals()
    for number in range(100):
        totals.requests_j += 3.0
        ledger.record("s", [make_receipt(f"r{number}")], totals)
    stop.set()
    thread.join()
    assert all(seen)
    assert sums == sorted(sums)
    assert ledger.session_sum_j("s") == 300.0


WRITER = """
    import sys
    from greenllm.energy.receipt import Receipt
    from greenllm.energy.account.totals import Totals
    from greenllm.energy.ledger import Ledger

    ledger, totals, number = Ledger(sys.argv[1]), Totals(), 0
    ledger.open_session("s", method="x", measured=True, is_own=False)
    while True:
        totals.meter_j += 4.0
        totals.idle_j += 1.0
        totals.requests_j += 3.0
        receipt = Receipt(
            f"r{number}", "m", "completed", 1.0, "final", "x", True, active_j=2.0, idle_j=1.0
        )
        ledger.record("s", [receipt], totals)
        assert ledger.session_sum_j("s") == totals.requests_j
        print(receipt.request_id, flush=True)
        number += 1
"""


@pytest.mark.parametrize("num_rows", [1, 57, 200])
def test_a_killed_server_leaves_every_row_it_told_of(path: Path, num_rows: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline().strip() for _ in range(num_rows)]
        writer.send_signal(signal.SIGKILL)
        told += writer.stdout.read().split()
    reopened = Ledger(path)
    (session,) = reopened.sessions()
    assert told[0] == "r0"
    assert set(told) <= {receipt.request_id for receipt in reopened.receipts()}
    assert reopened.session_sum_j("s") == session.totals.requests_j
    assert session.totals.residual == 0
    assert not session.closed
    reopened.open_session("next", method="x", measured=True)
    assert len(reopened.sessions()) == 2
    reopened.close()


@pytest.mark.parametrize(("mean_layers", "agreement"), [(7.25, 0.95), (7.25, None), (None, 0.9)])
def test_approximate_answers_come_back_as_such(
    ledger: Ledger, mean_layers: float | None, agreement: float | None
) -> None:
    early = make_receipt("a", approximate=True, mean_layers=mean_layers, agreement_target=agreement)
    plain = make_receipt("b")
    ledger.record("s", [replace(early, status="provisional", mean_layers=None), plain])
    ledger.record("s", [early])
    assert ledger.receipt("a") == early
    found = ledger.receipts()
    assert found == [early, plain]
    assert [receipt.approximate for receipt in found] == [True, False]
    assert {type(receipt.approximate) for receipt in found} == {bool}


OLD_ROW = {
    **{"request_id": "old", "session_id": "s", "model": "m", "endpoint": "/v1/completions"},
    **{"outcome": "completed", "created_s": 100.0, "status": "final", "method": "measured:x"},
    **{"measured": 1, "prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 5},
    **{"duration_s": 1.0, "resident_s": 0.5, "active_j": 2.0, "idle_j": 1.0, "total_j": 3.0},
    **{"domains_j": "{}", "attribution": "ok", "drafted_tokens": 4, "accepted_tokens": 3},
}


def test_rows_of_before_were_not_approximate(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
        Ledger(path).close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (3,)
    columns, places = ", ".join(OLD_ROW), ", ".join("?" * len(OLD_ROW))
    db.execute(f"INSERT INTO requests ({columns}) VALUES ({places})", list(OLD_ROW.values()))
    db.commit()
    db.close()
    opened = Ledger(path)
    old = opened.receipt("old")
    assert old is not None
    assert (old.approximate, old.mean_layers, old.agreement_target) == (False, None, None)
    assert (old.drafted_tokens, old.accepted_tokens, old.total_j) == (4, 3, 3.0)
    opened.open_session("t", method="x", measured=True)
    new = make_receipt("new", approximate=True, mean_layers=4.5, agreement_target=0.99)
    opened.record("t", [new])
    assert opened.receipt("new") == new
    assert opened.sums()[0].requests == 2
    opened.close()


def test_of_two_statuses_the_one_that_was_sent_last_stays_and_the_joules_do_too(
    ledger: Ledger,
) -> None:
    answered = replace(make_receipt("a"), http_status=200)
    ledger.record("s", [answered])
    ledger.record("s", [replace(answered, http_status=500, active_j=99.0)])
    assert ledger.receipt("a") == replace(answered, http_status=500)


def test_lost_joules_that_nobody_knows_are_on_no_sum(ledger: Ledger) -> None:
    """A note without joules makes a row without any, and leaves one with a prediction alone."""
    unknown = replace(LOST, status="provisional", measured=False, active_j=None, idle_j=None)
    early = make_receipt("early", status="provisional", active_j=3.0)
    totals = Totals(meter_j=5.0, open_j=5.0)
    noted = [unknown, replace(unknown, request_id="early")]
    ledger.record("s", [early], totals, if_lost=noted)
    assert ledger.close_lost("s") == ["lost"]
    assert ledger.receipt("lost") == unknown
    assert ledger.receipt("early") == early
    assert ledger.sessions()[0].totals == totals


def test_a_session_is_not_closed_before_its_rows_are_written(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals that are written later would open it again, and nobody would close it."""
    ledger.record("s", [], Totals(meter_j=5.0, open_j=5.0), if_lost=[LOST])
    monkeypatch.setattr(writer.LedgerWriter, "flush", lambda *_: False)
    with pytest.raises(LedgerError, match="rows wait"):
        ledger.close_lost("s")
    monkeypatch.undo()
    assert ledger.close_lost("s") == ["lost"]


def test_a_write_that_hangs_does_not_hang_who_closes(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_connection, "_PATIENCE_S", 0.01)
    connection = LedgerConnection(path)
    hangs, may_go_on = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        hangs.set()
        may_go_on.wait(60)

    hanging = threading.Thread(target=connection.write, args=(hang,))
    hanging.start()
    assert hangs.wait(60)
    connection.close()
    assert "the disk does not answer" in caplog.text
    may_go_on.set()
    hanging.join()
    connection.close()


def test_a_request_that_was_never_noted_has_a_row_all_the_same(path: Path) -> None:
    """Its client was told its id, and a moment later the server was killed."""
    killed = Ledger(path)
    killed.open_session("s", method="measured:x", measured=True)
    unknown = {"status": "provisional", "outcome": "lost", "active_j": None, "idle_j": None}
    for name in ("never", "noted", "answered"):
        killed.opened("s", make_receipt(name, **unknown))
    killed.record("s", [make_receipt("answered")], Totals())
    killed.record("s", [], Totals(), if_lost=[make_receipt("noted", outcome="lost")])
    killed._locks["s"]._stream.write('{"request_id": "cut o')
    leave(killed)
    later = Ledger(path)
    later.book_lost()
    rows = {row.request_id: (row.outcome, row.status, row.total_j) for row in later.receipts()}
    later.close()
    assert rows == {
        "never": ("lost", "provisional", None),
        "noted": ("lost", "final", 3.0),
        "answered": ("completed", "final", 3.0),
    }
