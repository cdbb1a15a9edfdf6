"""The ledger keeps every row and the totals they add up to, whatever happens to file or process."""

import logging
import math
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.energy import ledger as module
from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import GroupSums, Ledger, LedgerError
from tests.unit.energy.rig import make_receipt


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
    assert db.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS),)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_an_older_file_gets_the_missing_migrations_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(path).close()

    def add_note(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE requests ADD COLUMN note TEXT")

    monkeypatch.setattr(module, "MIGRATIONS", [*module.MIGRATIONS, add_note])
    for _ in range(2):
        Ledger(path).close()
    db = sqlite3.connect(path)
    assert "note" in [row[1] for row in db.execute("PRAGMA table_info(requests)")]
    assert db.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS),)
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
        older.setattr(module, "MIGRATIONS", module.MIGRATIONS[:1])
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
            make_receipt("3", model="b", status="provisional", adapter="x", key="k"),
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
    assert {row.group: row.requests for row in ledger.sums("key")} == {None: 2, "k": 1}
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


def test_rows_wait_while_the_database_is_locked(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Ledger(path)
    opened.open_session("s", method="x", measured=True)
    opened._db.execute("PRAGMA busy_timeout = 20")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.ERROR):
        opened.record("s", [make_receipt("a")], Totals(requests_j=3.0))
        opened.record("s", [make_receipt("b", status="provisional")])
    assert "1 rows wait" in caplog.text
    assert "2 rows wait" in caplog.text
    assert opened.receipts() == []
    assert opened.receipt("a") == make_receipt("a"), "waiting rows are known all the same"
    with pytest.raises(LedgerError, match="cannot begin a session: database is locked"):
        opened.open_session("t", method="x", measured=True)
    other.execute("ROLLBACK")
    other.close()
    opened.record("s", [make_receipt("b")], Totals(requests_j=6.0))
    assert [receipt.request_id for receipt in opened.receipts()] == ["a", "b"]
    assert opened.receipt("b") == make_receipt("b")
    assert opened.session_sum_j("s") == opened.sessions()[0].totals.requests_j == 6.0
    assert len(caplog.records) == 2
    opened.close()


def test_rows_and_totals_are_written_together_or_not_at_all(ledger: Ledger) -> None:
    broken = Totals(meter_j=math.nan)  # NaN is NULL, which the column refuses
    ledger.record("s", [make_receipt("a")], broken)
    assert ledger.receipts() == []
    ledger.record("s", [], Totals(requests_j=3.0))
    assert ledger.session_sum_j("s") == ledger.sessions()[0].totals.requests_j == 3.0


def test_a_failed_commit_does_not_block_the_ledger_for_ever(path: Path) -> None:
    opened = Ledger(path)
    opened.open_session("s", method="x", measured=True)
    opened._db.execute("PRAGMA foreign_keys = ON")
    opened._db.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
    opened._db.execute(
        "CREATE TABLE children (id REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)"
    )
    opened._db.execute(
        "CREATE TRIGGER orphan AFTER INSERT ON requests WHEN NOT EXISTS (SELECT 1 FROM parents)"
        " BEGIN INSERT INTO children VALUES (1); END"
    )
    opened.record("s", [make_receipt("a")])
    assert opened.receipts() == []
    opened._db.execute("INSERT INTO parents VALUES (1)")
    opened.record("s", [make_receipt("b")])
    assert {receipt.request_id for receipt in opened.receipts()} == {"a", "b"}
    opened.close()


def test_too_many_waiting_rows_drop_the_oldest(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_UNWRITTEN", 2)
    rows = [make_receipt(str(number)) for number in range(4)]
    ledger.record("s", rows, Totals(meter_j=math.nan))
    ledger.record("s", [])
    assert [receipt.request_id for receipt in ledger.receipts()] == ["2", "3"]


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
    ledger.open_session("s", method="x", measured=True)
    while True:
        totals.meter_j += 4.0
        totals.idle_j += 1.0
        totals.requests_j += 3.0
        receipt = Receipt(
            f"r{number}", "m", "completed", 1.0, "final", "x", True, active_j=2.0, idle_j=1.0
        )
        ledger.record("s", [receipt], totals)
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
        older.setattr(module, "MIGRATIONS", module.MIGRATIONS[:3])
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
