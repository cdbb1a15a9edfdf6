"""Other programs are noticed, and waiting threads are told to sleep unless the user said else."""

from __future__ import annotations

import os

import pytest

from finetune.contention import bound_spinning, warn_of_others
from greenllm.energy.meters.cputime import CpuTimes


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_what_is_set_stays(
    given: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    bound_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == found
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


@pytest.mark.parametrize(
    ("others_s", "threads", "cpus", "advice"),
    [
        (10.0, 2, 2, "--threads 1"),
        (4.0, 2, 2, "--threads 1"),
        (2.0, 2, 2, None),
        (10.0, 1, 2, None),
        (10.0, 4, 8, None),
        (35.0, 8, 8, "--threads 4"),
    ],
)
def test_others_are_told_where_they_matter(
    others_s: float, threads: int, cpus: int, advice: str | None
) -> None:
    said: list[str] = []
    warn_of_others(CpuTimes(3.0, 3.0 + others_s), 10.0, threads, cpus, said.append)
    assert len(said) == (advice is not None)
    assert advice is None or advice in said[0]
    warn_of_others(CpuTimes(3.0, 3.0 + others_s), 0.0, threads, cpus, said.append)
    assert len(said) == (advice is not None)
