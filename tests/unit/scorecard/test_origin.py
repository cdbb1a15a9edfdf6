"""Commands can be pasted and hold no keys; machines are named, not their instruction set."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.commands.evaluate import identity_of
from evals.evaluation_config import EvalConfig
from finetune.bill import report
from finetune.commands import compress
from finetune.compressing.config import CompressConfig
from finetune.recipe import Recipe
from greenllm.energy.hardware import CpuInfo
from greenllm.scorecard import origin
from greenllm.scorecard.origin import command_line, machine_name
from tests.unit.scorecard.samples import MOMENT


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["eval", "--api-key", "a b"], "greenllm eval --api-key '***'"),
        (["eval", "--api-key=a b"], "greenllm eval '--api-key=***'"),
        (["serve", "--api-keys", "a,b", "m"], "greenllm serve --api-keys '***' m"),
        (
            ["compress", "m", "--serve", "--port 1 --api-keys=secret --threads 1"],
            "greenllm compress m --serve '--port 1 --api-keys=*** --threads 1'",
        ),
        (
            ["finetune", "--sweep", "rank=4,16;alpha=8"],
            "greenllm finetune --sweep 'rank=4,16;alpha=8'",
        ),
    ],
)  # fmt: skip
def test_commands_are_quoted_and_hold_no_keys(words: list[str], line: str) -> None:
    assert command_line(words) == line


@given(words=st.lists(st.text(st.characters(exclude_characters="-", exclude_categories=["C"]))))
def test_a_shell_takes_the_words_back(words: list[str]) -> None:
    assert shlex.split(command_line(words)) == ["greenllm", *words]


def test_a_fine_tunes_command_is_quoted_and_masked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["x", "finetune", "--data", "my notes.jsonl", "--api-key", "k"]
    )
    monkeypatch.setattr(report, "version", lambda name: "1")
    found = report.identity_of(Recipe(model="base", data="d", output=Path("out")), "digest", "now")
    assert found["command"] == "greenllm finetune --data 'my notes.jsonl' --api-key '***'"
    assert found["machine"] == machine_name()


def test_a_compressions_command_is_masked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "version", lambda name: "1")
    config = CompressConfig(model="big", layers=2, output=Path("small"))
    words = ["compress", "big", "--serve", "--api-keys secret"]
    found = compress.identity_of(config, words, "now")
    assert found["command"] == "greenllm compress big --serve '--api-keys ***'"
    assert found["machine"] == machine_name()


def test_an_evaluation_names_this_machine_and_no_other() -> None:
    assert identity_of(EvalConfig(), ["eval"], MOMENT)["machine"] == machine_name()
    assert identity_of(EvalConfig(url="http://far"), ["eval"], MOMENT)["machine"] is None


def cuda(*names: str | None) -> SimpleNamespace:
    """A torch with these GPUs; one without a name cannot be opened."""

    def named(number: int) -> str:
        name = names[number]
        if name is None:
            raise RuntimeError("the GPU is taken")
        return name

    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: bool(names),
            device_count=lambda: len(names),
            get_device_name=named,
        )
    )


@pytest.mark.parametrize(
    ("torch", "gpus"),
    [
        (None, ""),
        (cuda(), ""),
        (cuda("NVIDIA H100", "NVIDIA H100"), ", 2 x NVIDIA H100"),
        (cuda("NVIDIA H100", None), ", 1 x NVIDIA H100, 1 x GPU"),
    ],
)
def test_processors_and_gpus_are_named_and_counted(
    monkeypatch: pytest.MonkeyPatch, torch: SimpleNamespace | None, gpus: str
) -> None:
    cpu = CpuInfo("AuthenticAMD", 25, 17, "AMD EPYC 9V74", 2)
    monkeypatch.setattr(origin, "read_cpu_info", lambda: cpu)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert machine_name() == f"2 x AMD EPYC 9V74{gpus}"


def test_a_processor_without_a_name_is_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "read_cpu_info", lambda: CpuInfo("0x41", 8, 3, "", 4))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert machine_name() == "4 x aarch64"
