"""`greenllm report` against ledgers written by the real `Ledger`."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from greenllm.__main__ import main
from greenllm.cli.app import app
from greenllm.energy.account.totals import Totals
from greenllm.energy.ledger import Ledger
from greenllm.energy.receipt import Receipt

HOUR_S = 3600.0
NOON_S = 1_767_268_800.0
METERED = Receipt(
    request_id="r1",
    model="small",
    outcome="completed",
    created_s=NOON_S,
    status="final",
    method="measured:fake",
    measured=True,
    endpoint="/v1/completions",
    http_status=200,
    prompt_tokens=10,
    completion_tokens=20,
    duration_s=2.0,
    resident_s=1.5,
    active_j=4.0,
    idle_j=2.0,
    domains_j={"cpu": 6.0},
    flops=3e9,
    operational_g=0.25,
    embodied_g=0.5,
)
REFUSED = Receipt(
    request_id="r9",
    model="refused",
    outcome="refused",
    created_s=NOON_S + HOUR_S,
    status="unmetered",
    method="none",
    measured=False,
    prompt_tokens=7,
)
RECEIPTS = (
    METERED,
    replace(METERED, request_id="r2", model="large", adapter="a1", active_j=10.0),
    replace(METERED, request_id="r3", created_s=NOON_S + 2 * HOUR_S),
    REFUSED,
)
CLOSED = Totals(
    meter_j=40.0, load_j=3.0, idle_j=9.0, train_j=1.0, unattributed_j=3.0, requests_j=24.0
)
KILLED = Totals(meter_j=9.0, idle_j=4.0, open_j=5.0)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Three metered requests and a refused one in a closed session; a killed session."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for session_id, totals in (("s-closed", CLOSED), ("s-killed", KILLED)):
        ledger.open_session(session_id, method="measured:fake", measured=True, parameters=2_600_000)
        ledger.record(session_id, [], totals)
    ledger.record("s-closed", RECEIPTS, CLOSED, closed=True)
    ledger.close()
    age(tmp_path, "s-killed", 3600)
    return tmp_path


def age(folder: Path, session_id: str, seconds: float) -> None:
    """Let a session be last heard of that long ago."""
    db = sqlite3.connect(folder / "ledger.sqlite")
    with db:
        db.execute(
            "UPDATE sessions SET updated_s = updated_s - ? WHERE session_id = ?",
            (seconds, session_id),
        )
    db.close()


def run(data_dir: Path, *arguments: object, width: int = 160) -> str:
    """Output of a report that succeeds, on a terminal of that width."""
    words = ["report", "--data-dir", str(data_dir), *map(str, arguments)]
    result = CliRunner(env={"COLUMNS": str(width)}).invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def row(output: str, name: str) -> list[str]:
    """Cells of the first line that begins with a name."""
    lines = (re.split(r"\s{2,}", line.strip()) for line in output.splitlines())
    return next(cells for cells in lines if cells[0] == name)


def failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    """The one line on standard error of a report that fails."""
    monkeypatch.setattr(sys, "argv", ["greenllm", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_groups_and_their_sum(data_dir: Path) -> None:
    output = run(data_dir)
    assert row(output, "small") == ["small", "2", "0", "20", "40", "8", "12", "0.3", "1.5", "0"]
    assert row(output, "large") == ["large", "1", "0", "10", "20", "10", "12", "0.6", "0.75", "0"]
    assert row(output, "all") == ["all", "4", "1", "37", "60", "18", "24", "0.4", "2.25", "1"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_models_and_sessions_are_readable_on_narrow_terminals(data_dir: Path, width: int) -> None:
    output = run(data_dir, width=width)
    rows = [line.split() for line in output.splitlines()]
    assert all(["s-closed", "large"].count(name) <= 1 for (name, *_) in filter(None, rows))
    for name, cells in {"large": {"10", "12", "0.6", "0.75"}, "s-closed": {"40", "24"}}.items():
        assert cells <= {cell for row in rows if row[:1] == [name] for cell in row}
    parts = [row[0] for row in rows if row[1:2] == ["requests"] or row[:1] == ["session"]]
    assert parts.count("model") == 1
    assert parts.count("session") == (1 if width > 120 else 2)


def test_unknown_is_a_dash_and_not_zero(data_dir: Path) -> None:
    assert row(run(data_dir), "refused") == ["refused", "1", "1", "7", "0", "—", "—", "—", "—", "1"]


def test_a_group_without_a_name_is_a_dash(data_dir: Path) -> None:
    output = run(data_dir, "--group-by", "adapter")
    assert row(output, "—")[1] == "3"
    assert row(output, "a1")[1] == "1"


def test_tokens_nobody_metered_do_not_make_joules_per_token_small(tmp_path: Path) -> None:
    unmetered = replace(REFUSED, model="small", completion_tokens=1000)
    write(tmp_path, [METERED, unmetered])
    assert row(run(tmp_path), "small")[7] == "0.3"


def test_guesses_have_a_table_where_there_were_any(tmp_path: Path, data_dir: Path) -> None:
    guessed = replace(METERED, drafted_tokens=8, accepted_tokens=6, draft_j=0.5)
    folder = tmp_path / "guessed"
    folder.mkdir()
    write(folder, [guessed, replace(METERED, request_id="r2", model="large", draft_j=0.0)])
    path = folder / "report.json"
    output = run(folder, "--json", path)
    table = output[output.index("Draft tokens by model") :]
    assert row(table, "small") == ["small", "8", "6", "0.75", "0.5", "4"]
    assert "large" not in table
    total = json.loads(path.read_text())["total"]
    assert (total["drafted_tokens"], total["accepted_tokens"]) == (8, 6)
    assert total["draft_joules"] == 0.5
    assert "Guessed tokens" not in run(data_dir)


def test_six_measures(data_dir: Path) -> None:
    output = run(data_dir)
    assert "Six measures of 3 metered of 4 requests" in output
    assert row(output, "running time")[1:] == ["4.5", "s of the machine"]
    assert row(output, "model size")[1:] == ["2,600,000", "parameters"]
    assert row(output, "operations")[1] == "9e+09"
    assert row(output, "power")[1:] == ["5.333", "W"]
    assert row(output, "energy")[1] == "24"
    assert row(output, "carbon")[1] == "2.25"


def test_sessions_and_what_a_killed_one_lost(data_dir: Path) -> None:
    output = run(data_dir)
    closed = ["closed", "40", "3", "9", "1", "3", "24", "0", "0.0e+00"]
    assert row(output, "s-closed")[3:] == closed
    assert row(output, "s-killed")[3:] == [
        "not closed",
        "9",
        "0",
        "4",
        "0",
        "0",
        "0",
        "5",
        "0.0e+00",
    ]
    assert "s-killed was not closed: its server was killed after" in output
    assert "5 J (open) are lost" in output
    assert "does not add up" not in output


def test_a_running_server_has_lost_nothing(data_dir: Path) -> None:
    age(data_dir, "s-killed", -3600)
    output = run(data_dir)
    assert row(output, "s-killed")[3] == "running"
    assert "s-killed is open: its server runs, or was killed in the last 90 s; 5 J (open)" in output
    assert "lost" not in output


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "killed in the last 90 s\n"), (3600, "; no joules are lost\n")]
)
def test_what_rounding_leaves_of_a_sum_is_nothing(
    tmp_path: Path, seconds: float, said: str
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.open_session("s-1", method="m", measured=True)
    ledger.record("s-1", [], Totals(meter_j=1.0, idle_j=1.0 - 2e-9, open_j=3.5e-17, load_j=2e-9))
    ledger.close()
    age(tmp_path, "s-1", seconds)
    output = run(tmp_path)
    assert row(output, "s-1")[4:10] == ["1", "2e-09", "1", "0", "0", "0"]
    assert said in output


def test_models_of_two_sizes_have_no_size(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for session_id, parameters in (("s-1", 1000), ("s-2", 2000)):
        ledger.open_session(session_id, method="m", measured=True, parameters=parameters)
        receipt = replace(METERED, request_id=session_id)
        ledger.record(session_id, [receipt], Totals(meter_j=6.0, requests_j=6.0), closed=True)
    ledger.close()
    assert row(run(tmp_path), "model size")[1] == "—"


@pytest.mark.parametrize(
    "totals",
    [
        Totals(meter_j=7.0, requests_j=6.0),
        Totals(meter_j=5.0, requests_j=5.0),
    ],
    ids=["residual", "receipts"],
)
def test_a_session_that_does_not_add_up_is_named(tmp_path: Path, totals: Totals) -> None:
    write(tmp_path, [METERED], totals)
    assert "s-1 does not add up" in run(tmp_path)


def test_only_the_newest_sessions_are_printed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for number in range(23):
        ledger.open_session(f"s-{number:02}", method="m", measured=True)
    ledger.close()
    output = run(tmp_path)
    assert "3 older sessions are not shown" in output
    assert row(output, "s-03")
    assert not re.search(r"^  s-02 ", output, re.MULTILINE)


def test_period(data_dir: Path) -> None:
    output = run(data_dir, "--since", NOON_S + 1, "--until", "2026-01-01T14:00:00+00:00")
    assert row(output, "refused")[1] == "1"
    assert "Six measures of 0 metered of 1 requests" in output


def test_an_empty_ledger(tmp_path: Path) -> None:
    write(tmp_path, [])
    plot = tmp_path / "plot.png"
    output = run(tmp_path, "--plot", plot)
    assert row(output, "all") == ["all", "0", "0", "0", "0", "—", "—", "—", "—", "0"]
    assert plot.exists()


def test_reads_while_a_server_writes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.open_session("s-1", method="m", measured=True)
    ledger.record("s-1", [METERED])
    assert row(run(tmp_path), "small")[1] == "1"
    ledger.close()


def test_names_are_not_markup(tmp_path: Path) -> None:
    write(tmp_path, [replace(METERED, model="[red]x[/red]:fox:")])
    assert "[red]x[/red]:fox:" in run(tmp_path)


def test_the_environment_names_the_folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENLLM_DATA_DIR", str(data_dir))
    monkeypatch.setenv("GREENLLM_PORT", "not a port")
    result = CliRunner().invoke(app, ["report"], catch_exceptions=False)
    assert "s-killed" in result.output


def test_csv_has_every_receipt(data_dir: Path) -> None:
    path = data_dir / "all.csv"
    run(data_dir, "--csv", path)
    with path.open(newline="") as file:
        rows = {found["request_id"]: found for found in csv.DictReader(file)}
    assert set(rows) == {"r1", "r2", "r3", "r9"}
    assert rows["r2"]["total_j"] == "12.0"
    assert json.loads(rows["r1"]["domains_j"]) == {"cpu": 6.0}
    assert rows["r9"]["active_j"] == rows["r9"]["gco2e"] == ""


def test_json_has_sums_measures_and_sessions(data_dir: Path) -> None:
    path = data_dir / "report.json"
    run(data_dir, "--json", path, "--since", NOON_S)
    found = json.loads(path.read_text())
    assert (found["since"], found["until"]) == (NOON_S, None)
    groups = {group["group"]: group for group in found["data"]}
    assert groups["refused"]["energy_joules"] is None
    assert groups["small"]["joules_per_token"] == pytest.approx(0.3)
    assert found["total"]["idle_joules"] == 6.0
    assert found["measures"]["model_parameters"] == 2_600_000
    killed = next(item for item in found["sessions"] if item["session_id"] == "s-killed")
    assert (killed["closed"], killed["open_joules"], killed["adds_up"]) == (False, 5.0, True)


def test_plots(data_dir: Path) -> None:
    png, svg = data_dir / "plot.png", data_dir / "plot.SVG"
    run(data_dir, "--plot", png)
    run(data_dir, "--plot", svg, "--group-by", "adapter")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()


def test_a_plot_of_many_and_odd_names(tmp_path: Path) -> None:
    names = ["$x^$" + "y" * 50, *(f"m{number}" for number in range(70))]
    write(tmp_path, [replace(METERED, request_id=name, model=name) for name in names])
    run(tmp_path, "--plot", tmp_path / "plot.svg")
    assert "without 11 smaller ones" in plot_text(tmp_path / "plot.svg")


def test_a_plot_of_many_hours_keeps_the_newest(tmp_path: Path) -> None:
    times = [NOON_S + number * HOUR_S for number in range(62)]
    write(tmp_path, [replace(METERED, request_id=f"{at_s}", created_s=at_s) for at_s in times])
    run(tmp_path, "--plot", tmp_path / "plot.svg", "--group-by", "hour")
    text = plot_text(tmp_path / "plot.svg")
    assert "without 2 earlier ones" in text
    assert "2026-01-01T13:00Z" not in text
    assert "2026-01-01T14:00Z" in text


def test_no_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(monkeypatch, capsys, "--data-dir", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / "ledger.sqlite") in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-by", "colour"], "--group-by must be one of model"),
        (["--since", "yesterday"], "--since must be"),
        (["--until", "nan"], "--until must be"),
        (["--since", "2", "--until", "1"], "--since must be before --until"),
        (["--plot", "plot.pdf"], "--plot must end in .png or .svg"),
        (["--csv", "/dev/null/x.csv"], "cannot write /dev/null/x.csv"),
        (["--json", "/dev/null/x.json"], "cannot write /dev/null/x.json"),
        (["--plot", "/dev/null/x.png"], "cannot write /dev/null/x.png"),
    ],
)
def test_mistakes_are_one_line(
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert message in failure(monkeypatch, capsys, "--data-dir", data_dir, *arguments)


def plot_text(path: Path) -> str:
    """The words of an SVG: matplotlib draws letters, and keeps the text as comments."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", path.read_text()))


def write(folder: Path, receipts: list[Receipt], totals: Totals | None = None) -> None:
    """A ledger with one session."""
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.open_session("s-1", method="measured:fake", measured=True)
    ledger.record("s-1", receipts, totals or Totals(), closed=True)
    ledger.close()
