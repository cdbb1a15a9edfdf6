"""`greenllm doctor` says what works, what does not and why, and changes nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from greenllm.cli import doctor
from greenllm.cli.app import app
from greenllm.energy.hardware import CpuInfo, vcpu_power
from greenllm.energy.ledger import Ledger
from greenllm.energy.meters.choose import Rung, choose_meter
from greenllm.energy.meters.limits import CpuShare
from greenllm.energy.meters.protocol import Reading, ReplayMeter
from greenllm.energy.meters.registry import Domain
from greenllm.energy.meters.scope import Scope
from greenllm.figures import print_table
from greenllm.runner.openvino.machine import TESTED
from greenllm.runner.passes import Passed, remember

RAPL = ReplayMeter([Reading(0.0)], method="measured:rapl", period_s=0.001)
MODEL = ReplayMeter([Reading(0.0)], method="modelled:x", measured=False, uncertainty=0.4)
BROKEN = Rung("rapl", None, "energy_uj: permission denied; see greenllm doctor")
ABSENT = Rung("rapl", None, "no rapl counters found")
MODELLED = Rung("modelled", MODEL, "works")


def run(monkeypatch: pytest.MonkeyPatch, data_dir: Path, *arguments: str) -> str:
    monkeypatch.setenv("GREENLLM_DATA_DIR", str(data_dir))
    monkeypatch.setenv("GREENLLM_CACHE_DIR", str(data_dir / "cache"))
    runner = CliRunner(env={"COLUMNS": "160"})
    result = runner.invoke(app, ["doctor", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = run(monkeypatch, tmp_path)
    assert "chosen" in output
    assert "W per vCPU" in output
    assert "torch 2." in output
    assert f"openvino {version('openvino')}" in output
    assert "openvino on CPUs for llama, mistral, qwen2, qwen3, phi3" in output
    assert "quantized weights are computed in" in output
    assert f"no self-check is remembered in {tmp_path / 'cache'}" in output
    assert f"{tmp_path / 'ledger.sqlite'}" in output
    assert "does not exist yet" in output
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_ledger_may_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = run(monkeypatch, tmp_path / "other", "--data-dir", str(tmp_path / "here"))
    assert str(tmp_path / "here" / "ledger.sqlite") in output


def test_without_openvino_torch_serves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    (line,) = doctor.runner_lines()
    assert line.startswith("torch for all models")
    assert f"pip install 'openvino{TESTED}'" in line


@pytest.mark.parametrize(("fast", "said"), [(True, "in bfloat16, "), (False, "8-bit activations")])
def test_the_arithmetic_is_that_of_this_cpu(
    monkeypatch: pytest.MonkeyPatch, fast: bool, said: str
) -> None:
    monkeypatch.setattr(doctor, "computes_bfloat16", lambda: fast)
    assert said in doctor.runner_lines()[-1]


def test_an_openvino_that_is_broken_or_untested_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise ImportError("libopenvino.so:\ncannot open")

    monkeypatch.setattr(doctor, "computes_bfloat16", broken)
    monkeypatch.setattr(doctor, "installed", lambda name: "2031.1.0")
    _, state, failure = doctor.runner_lines()
    assert "not the tested one (>=2026.4,<2026.5)" in state
    assert failure == "OpenVINO does not work: libopenvino.so: cannot open"


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_meters_fit_a_terminal(width: int) -> None:
    method = "modelled:vcpu-specpower"
    model = ReplayMeter([Reading(0.0)], method=method, measured=False, uncertainty=0.4)
    nvml = Rung("nvml-power", None, "nvml: NVML Shared Library Not Found")
    ladders: dict[Domain, list[Rung]] = {
        "gpu": [nvml],
        "cpu": [ABSENT, Rung("modelled", model, "works")],
    }
    console = Console(width=width, markup=False, highlight=False)
    with console.capture() as capture:
        print_table(console, "Meters", doctor.rung_table(ladders))
    rows = [line.split() for line in capture.get().splitlines()]
    assert ["cpu", "modelled", "chosen", "0", "ms", "40%", method] in rows
    assert sum(row[:1] == ["domain"] for row in rows) == 1


def test_self_checks_that_passed_are_listed(tmp_path: Path) -> None:
    remember(tmp_path, "a", Passed("llama", "int8 weights, bfloat16", "2026.4.1", 0.012, 0.09))
    (tmp_path / "selfcheck" / "older.json").write_text('{"difference": 0.1}')
    (tmp_path / "selfcheck" / "torn.json").write_text("{")
    heading, line = doctor.selfcheck_lines(tmp_path)
    assert heading == "self-checks that passed:"
    assert line.strip() == (
        "llama, int8 weights, bfloat16: 0.012 of the logits apart (allowed 0.09), OpenVINO 2026.4.1"
    )


def test_self_checks_say_what_they_differ_in_and_no_line_comes_twice(tmp_path: Path) -> None:
    check = Passed("llama", "int8 weights", "2026.4.1", 0.01, 0.09, "heads of 64")
    narrow, worse = replace(check, shape="heads of 32"), replace(check, difference=0.03)
    for i, passed in enumerate([check, narrow, worse, replace(check, difference=0.02)]):
        remember(tmp_path, str(i), passed)
    _, *lines = doctor.selfcheck_lines(tmp_path)
    figures = "of the logits apart (allowed 0.09), OpenVINO 2026.4.1"
    assert [line.strip() for line in lines] == [
        f"llama, heads of 32, int8 weights: 0.01 {figures}",
        f"llama, heads of 64, int8 weights: 0.03 {figures}; the worst of 3 alike",
    ]


def test_only_the_model_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {"gpu": [Rung("nvml", None, "nvml: no driver")], "cpu": [BROKEN, MODELLED]}
    monkeypatch.setattr(doctor, "ladder", lambda domain, scope: found[domain])
    output = run(monkeypatch, tmp_path)
    assert "nvml: no driver" in output
    assert "70-rapl.rules" in output
    assert "CVE-2020-8694" in output


def test_the_chosen_rungs_are_those_serving_takes() -> None:
    gpu = [Rung("nvml", None, "no driver")]
    cpu = [Rung("rapl", RAPL, "works"), MODELLED]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(doctor.rung_table({"gpu": gpu, "cpu": cpu}))
    lines = capture.get().splitlines()
    [chosen] = [line for line in lines if "chosen" in line]
    assert choose_meter("auto", {"gpu": gpu, "cpu": cpu}).method in chosen
    assert "1 ms" in chosen
    assert "5%" in chosen
    [other] = [line for line in lines if "modelled" in line]
    assert "yes" in other


def test_rapl_that_works_needs_nothing() -> None:
    assert doctor.rapl_lines(Rung("rapl", RAPL, "works"), is_virtual=False) == ["works"]


def test_counters_that_stand_still_are_named() -> None:
    [line] = doctor.rapl_lines(
        Rung("rapl", None, "stands still under load: package-1"), is_virtual=True
    )
    assert line.startswith("stands still under load: package-1")
    works = Rung("rapl", RAPL, "works, but stands still under load: dram:0")
    assert doctor.rapl_lines(works, is_virtual=False) == [works.reason]
    assert doctor.rung_cells(works, chosen=True)[-1] == f"measured:rapl: {works.reason}"


def test_a_gpu_that_computes_unmetered_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = Rung("nvml", None, "nvml: driver/library version mismatch")
    found = {"gpu": [broken], "cpu": [BROKEN, MODELLED]}
    monkeypatch.setattr(doctor, "ladder", lambda domain, scope: found[domain])
    monkeypatch.setattr(doctor, "Scope", lambda: Scope(cuda=lambda: ("0-board",)))
    output = run(monkeypatch, tmp_path)
    assert "gpu: nvml: driver/library version mismatch. What a model on it costs" in output


def test_rapl_that_refuses_comes_with_a_recipe_and_a_warning() -> None:
    text = "\n".join(doctor.rapl_lines(BROKEN, is_virtual=True))
    for word in ("permission denied", "groupadd", "udevadm trigger", "chmod 440", "PLATYPUS"):
        assert word in text


def test_rapl_in_a_virtual_machine_is_not_available() -> None:
    [line] = doctor.rapl_lines(ABSENT, is_virtual=True)
    assert "virtual machine" in line


def test_rapl_missing_on_metal_may_be_a_module() -> None:
    assert "modprobe intel_rapl_msr" in doctor.rapl_lines(ABSENT, is_virtual=False)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flags\t: fpu hypervisor lm\n", True), ("flags\t: fpu lm\n", False), ("", False)],
)
def test_virtual_machines_are_told_by_a_flag(tmp_path: Path, text: str, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert doctor.is_virtual(path) is expected
    assert doctor.is_virtual(tmp_path / "none") is False


def test_watts_come_with_their_interval() -> None:
    cpu = CpuInfo("AuthenticAMD", 25, 1, "AMD EPYC 7763", 8)
    power = vcpu_power(cpu)
    lines = doctor.cpu_lines(cpu, power)
    assert "AMD EPYC 7763, 8 vCPUs" in lines[0]
    assert power.family in lines[0]
    assert f"{power.max_w:.4g} W per vCPU [" in lines[1]
    unknown = CpuInfo("unknown", None, None, "", 1)
    assert "not recognised" in doctor.cpu_lines(unknown, vcpu_power(unknown))[0]


@pytest.mark.parametrize(
    ("torch", "expected"),
    [("2.13.0+cpu", "none: CPU build of torch"), ("2.13.0+cu130", "of torch: cu130")],
)
def test_cuda_comes_from_torchs_version(
    monkeypatch: pytest.MonkeyPatch, torch: str, expected: str
) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: torch)
    assert doctor.cuda_version() == expected


def test_cuda_comes_from_its_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        name, version = "nvidia-cuda-runtime-cu12", "12.8.90"

    monkeypatch.setattr(doctor, "version", lambda name: "2.13.0")
    monkeypatch.setattr(doctor, "distributions", lambda: [Distribution])
    assert doctor.cuda_version() == "runtime 12.8.90"
    monkeypatch.setattr(doctor, "distributions", list)
    assert doctor.cuda_version() == "—"


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    assert "bitsandbytes is not installed" in doctor.version_lines()


def test_ledger_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "ledger.sqlite"
    assert "does not exist yet" in doctor.ledger_state(path)
    path.parent.mkdir()
    Ledger(path).close()
    assert doctor.ledger_state(path) == "can be written"
    readable = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: mode != os.W_OK and readable(p, mode))
    assert doctor.ledger_state(path) == "can be read, but not written"


def test_a_ledger_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("not a database, and long enough to be taken for one" * 20)
    assert "cannot be used" in doctor.ledger_state(path)
    assert "cannot be made" in doctor.ledger_state(path / "below" / "ledger.sqlite")


def test_a_part_of_the_processor_is_named() -> None:
    assert doctor.share_lines(None) == []
    (line,) = doctor.share_lines(CpuShare(2.0, "quota /sys/fs/cgroup", lambda: None))
    assert line == "this process may use 2 of them: quota /sys/fs/cgroup"


def test_the_grid_is_named_and_the_worlds_average_is_warned_of() -> None:
    france, *nothing = doctor.carbon_lines("FRA")
    assert france.startswith("44.18 g/kWh, France, 2024")
    assert nothing == []
    world, warning = doctor.carbon_lines(None)
    assert world.startswith("458.29 g/kWh, World, 2025")
    assert "name yours with --zone" in warning
    (unknown,) = doctor.carbon_lines("Atlantis")
    assert "no carbon intensity for zone 'Atlantis'" in unknown


def test_the_cross_check_is_made_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checked: list[int] = []
    found = {"gpu": [], "cpu": [BROKEN, MODELLED]}
    monkeypatch.setattr(doctor, "ladder", lambda domain, scope: found[domain])
    monkeypatch.setattr(doctor, "allowed_threads", lambda num_vcpus: 3)
    monkeypatch.setattr(doctor, "cross_check", lambda console, ladders, n: checked.append(n))
    assert "not calibrated" in run(monkeypatch, tmp_path)
    assert checked == []
    run(monkeypatch, tmp_path, "--cross-check")
    assert checked == [3]
