"""The tables of `greenllm report`.

Contract: unknown figures are dashes; a session whose joules do not add up is named. Not covered:
what the figures mean beyond their headings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from rich.console import Console
from rich.table import Table

from greenllm.cli.report_data import Report, SessionAccount
from greenllm.energy.ledger import GroupSums, Session
from greenllm.energy.units import joules_to_kwh
from greenllm.figures import UNKNOWN, make_table, moment, number, print_table

Columns = Mapping[str, Callable[[GroupSums], str]]

_GROUP: Columns = {
    "requests": lambda row: f"{row.requests:,}",
    "refused": lambda row: f"{row.refused:,}",
    "prompt tokens": lambda row: f"{row.prompt_tokens:,}",
    "completion tokens": lambda row: f"{row.completion_tokens:,}",
    "active J": lambda row: number(row.active_j),
    "total J": lambda row: number(row.total_j),
    "J/token": lambda row: number(row.joules_per_token),
    "gCO2e": lambda row: number(row.gco2e),
    "unmetered": lambda row: f"{row.unmetered:,}",
}
_DRAFT: Columns = {
    "drafted tokens": lambda row: f"{row.drafted_tokens:,}",
    "accepted": lambda row: f"{row.accepted_tokens:,}",
    "accepted/drafted": lambda row: number(row.acceptance),
    "draft J": lambda row: number(row.draft_j),
    "active J": lambda row: number(row.active_j),
}
_JOULES = {
    "meter J": "meter_j",
    "load": "load_j",
    "idle": "idle_j",
    "training": "train_j",
    "unattributed": "unattributed_j",
    "requests": "requests_j",
    "open": "open_j",
}
_SESSIONS = "Sessions: meter = load + idle + training + unattributed + requests + open"
MAX_SESSIONS = 20
HEARD_S = 90.0  # a server without requests writes its totals every 30 s
NOTHING_J = 1e-9  # what is left of sums of floating-point numbers that cancel


def print_report(console: Console, report: Report) -> None:
    """Print all tables and what is to be said about them."""
    total = report.total
    metered = f"{total.requests - total.unmetered:,} metered of {total.requests:,} requests"
    print_table(console, f"Requests by {report.group_by}", group_table(report))
    if total.drafted_tokens:
        print_table(console, f"Draft tokens by {report.group_by}", draft_table(report))
    print_table(console, f"Six measures of {metered}", measures_table(report))
    shown = report.accounts[-MAX_SESSIONS:]
    print_table(console, _SESSIONS, session_table(shown))
    hidden = len(report.accounts) - len(shown)
    if hidden:
        console.print(f"{hidden} older sessions are not shown; --json has them")
    for line in remarks(report.accounts, time.time()):
        console.print(line, soft_wrap=True)


def group_table(report: Report) -> Table:
    """One row per group, and the sum of all when there are several."""
    table = _table(report.group_by, _GROUP, report.groups)
    if len(report.groups) != 1:
        table.add_section()
        table.add_row("all", *_cells(_GROUP, report.total))
    return table


def draft_table(report: Report) -> Table:
    """What draft tokens did, for the groups that had any."""
    return _table(report.group_by, _DRAFT, [row for row in report.groups if row.drafted_tokens])


def _table(group_by: str, columns: Columns, rows: Iterable[GroupSums]) -> Table:
    table = make_table((group_by, *columns))
    for row in rows:
        table.add_row(UNKNOWN if row.group is None else row.group, *_cells(columns, row))
    return table


def _cells(columns: Columns, row: GroupSums) -> list[str]:
    return [column(row) for column in columns.values()]


def measures_table(report: Report) -> Table:
    """The six measures of greenness of the metered requests."""
    total = report.total
    table = make_table(("measure", "value", "unit"))
    energy_kwh = None if total.total_j is None else joules_to_kwh(total.total_j)
    rows = (
        ("running time", total.running_s, "s of the machine"),
        ("model size", report.parameters, "parameters"),
        ("operations", total.flops, "FLOPs"),
        ("power", total.avg_power_w, "W"),
        ("energy", total.total_j, "J"),
        ("", energy_kwh, "kWh"),
        ("carbon", total.gco2e, "gCO2e"),
    )
    table.columns[2].justify = "left"
    for name, value, unit in rows:
        text = f"{value:.4g}" if value is not None and name == "operations" else number(value)
        table.add_row(name, text, unit)
    return table


def session_table(accounts: tuple[SessionAccount, ...]) -> Table:
    """Where each session's joules went; they add up to the meter's."""
    columns = ("session", "started", "method", "state", *_JOULES, "residual")
    table = make_table(columns, num_text=4)
    for session in (account.session for account in accounts):
        about = (session.session_id, moment(session.started_s), session.method)
        joules = [_joules(getattr(session.totals, name)) for name in _JOULES.values()]
        residual = f"{session.totals.residual:.1e}"
        table.add_row(*about, _state(session, time.time()), *joules, residual)
    return table


def _state(session: Session, now_s: float) -> str:
    if session.closed:
        return "closed"
    return "running" if now_s - session.updated_s < HEARD_S else "not closed"


def _joules(value: float) -> str:
    return number(0.0 if abs(value) < NOTHING_J else value)


def _why_open(session: Session, now_s: float) -> str:
    """What it means that a session is not closed."""
    open_j = session.totals.open_j
    if now_s - session.updated_s < HEARD_S:
        heard = f"its server runs, or was killed in the last {HEARD_S:g} s"
        waiting = f"; {_joules(open_j)} J (open) belong to requests that have not ended"
        return f"{session.session_id} is open: {heard}{waiting if open_j >= NOTHING_J else ''}"
    killed = f"was not closed: its server was killed after {moment(session.updated_s)}"
    lost = f"{_joules(open_j)} J (open) are lost: no receipt has them"
    return f"{session.session_id} {killed}; {lost if open_j >= NOTHING_J else 'no joules are lost'}"


def remarks(accounts: tuple[SessionAccount, ...], now_s: float) -> list[str]:
    """One line per session that is not closed or does not add up."""
    lines = []
    for account in accounts:
        session, totals = account.session, account.session.totals
        if not session.closed:
            lines.append(_why_open(session, now_s))
        if not account.adds_up:
            lines.append(
                f"{session.session_id} does not add up: residual {totals.residual:.1e},"
                f" booked {_joules(totals.requests_j)} J for requests,"
                f" receipts hold {_joules(account.receipts_j)} J"
            )
    return lines
