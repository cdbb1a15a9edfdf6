"""The tables of `greenllm report`.

Contract: unknown figures are dashes; a session whose joules do not add up is named. Not covered:
what the figures mean beyond their headings.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from greenllm.cli.report_data import Report, SessionAccount, Sums
from greenllm.energy.ledger import Session
from greenllm.energy.units import joules_to_kwh
from greenllm.figures import UNKNOWN, make_table, moment, number, print_table

_GROUP_COLUMNS = (
    "requests",
    "prompt tokens",
    "completion tokens",
    "active J",
    "total J",
    "J/token",
    "gCO2e",
    "unmetered",
)
_DRAFT_COLUMNS = ("drafted tokens", "accepted", "accepted/drafted", "draft J", "active J")
_SESSION_COLUMNS = (
    "session",
    "started",
    "method",
    "state",
    "meter J",
    "load",
    "idle",
    "training",
    "unattributed",
    "requests",
    "open",
    "residual",
)
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
        print_table(console, f"Guessed tokens by {report.group_by}", draft_table(report))
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
    table = make_table((report.group_by, *_GROUP_COLUMNS))
    for sums in report.groups:
        table.add_row(UNKNOWN if sums.group is None else sums.group, *_group_cells(sums))
    if len(report.groups) != 1:
        table.add_section()
        table.add_row("all", *_group_cells(report.total))
    return table


def _group_cells(sums: Sums) -> tuple[str, ...]:
    counts = (sums.requests, sums.prompt_tokens, sums.completion_tokens)
    figures = (sums.active_j, sums.total_j, sums.joules_per_token, sums.gco2e)
    return (*map("{:,}".format, counts), *map(number, figures), f"{sums.unmetered:,}")


def draft_table(report: Report) -> Table:
    """Draft tokens and their joules, for the groups that had any."""
    table = make_table((report.group_by, *_DRAFT_COLUMNS))
    for sums in report.groups:
        if sums.drafted_tokens:
            counts = map("{:,}".format, (sums.drafted_tokens, sums.accepted_tokens))
            figures = map(number, (sums.acceptance, sums.draft_j, sums.active_j))
            table.add_row(UNKNOWN if sums.group is None else sums.group, *counts, *figures)
    return table


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
    table = make_table(_SESSION_COLUMNS, num_text=4)
    for account in accounts:
        session, totals = account.session, account.session.totals
        joules = (
            totals.meter_j,
            totals.load_j,
            totals.idle_j,
            totals.train_j,
            totals.unattributed_j,
            totals.requests_j,
            totals.open_j,
        )
        table.add_row(
            session.session_id,
            moment(session.started_s),
            session.method,
            _state(session, time.time()),
            *map(_joules, joules),
            f"{totals.residual:.1e}",
        )
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
