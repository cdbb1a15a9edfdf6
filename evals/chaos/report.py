"""The table of a run: a row for each fault, one for each session, and promises that were broken."""

from __future__ import annotations

from collections.abc import Mapping

from evals.studies.study import Result, Study
from evals.tables import Column, Row, table, text, value


def _troubles(row: Row) -> str | None:
    found = [f"{count} {trouble}" for trouble, count in sorted(row["troubles"].items())]
    return ", ".join(found) or None


def _milliseconds(name: str) -> Column:
    return lambda row: text(row["health"][name], ".0f", 1e3)


FAULTS: Mapping[str, Column] = {
    "injected": value("fault"),
    "accepted": value("accepted", ",.0f"),
    "answered": value("answered", ",.0f"),
    "errors": _troubles,
    "wrong": value("wrong", ".0f"),
    "not one row": value("without_one_row", ".0f"),
    "/health, ms: median": _milliseconds("median_s"),
    "p99": _milliseconds("p99_s"),
    "worst": _milliseconds("worst_s"),
}
SESSIONS: Mapping[str, Column] = {
    "session": value("session_id"),
    "meter, J": value("meter_j", ".1f"),
    "residual": value("residual", ".1e"),
    "rows": value("rows_residual", ".1e"),
}


def page(result: Result) -> str:
    """Markdown."""
    broken = [f"- {text}" for text in result["broken"]] or ["Every promise was kept."]
    about = f"{result['seconds_each']:g} s each, {result['bystanders']} bystanders"
    questions = f"{result['questions']} of {result['questions_asked']} questions"
    return (
        "\n\n".join(
            [
                f"{result['model']}, {about}, {questions}; seed {result['seed']}.",
                table(FAULTS, result["faults"]),
                table(SESSIONS, result["sessions"]),
                "\n".join(broken),
            ]
        )
        + "\n"
    )


STUDY = Study("chaos", page, package="evals")
