"""A mistake ends a command with one line and code 2, also one of several tasks."""

from __future__ import annotations

import pytest

from evals import entry
from evals.entry import BenchError, finish


@pytest.fixture(autouse=True)
def _signals_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "end_like_interrupts", lambda: None)


@pytest.mark.parametrize(
    "error",
    [
        BenchError("no such thing"),
        ExceptionGroup("tasks", [ExceptionGroup("more", [BenchError("no such thing")])]),
    ],
)
def test_a_mistake_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        finish("evals.some", command)
    assert end.value.code == 2
    assert capsys.readouterr().err == "evals.some: no such thing\n"


def test_what_is_no_mistake_is_told_whole() -> None:
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        finish("evals.some", command)
    finish("evals.some", lambda: None)
