"""`greenllm estimate`: figures, what they rest on, and what is refused."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from greenllm.cli.app import app
from greenllm.cli.estimate import EstimateOptions, answer_to, find_accelerator
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.energy.carbon.grid import IntensityTable
from greenllm.energy.hardware import CpuInfo, vcpu_power
from greenllm.energy.units import hours_to_seconds, joules_to_kwh
from greenllm.options import EngineConfig

MILAN = CpuInfo("AuthenticAMD", 25, 1, "AMD EPYC 7763", 8)
NOBODY = CpuInfo("unknown", None, None, "", 2)


def run(*arguments: str) -> str:
    """Output of an estimate that succeeds."""
    runner = CliRunner(env={"COLUMNS": "160"})
    result = runner.invoke(app, ["estimate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def figures(output: str, name: str) -> list[str]:
    """Middle, low and high of a row."""
    line = next(line for line in output.splitlines() if line.strip().startswith(name))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_hours_of_a_gpu_with_a_zone() -> None:
    output = run(
        *("--hours", "1", "--hardware", "H100 SXM", "--utilisation", "1", "--zone", "France")
    )
    assert figures(output, "energy, J") == ["2,116,800", "1,738,800", "2,520,000"]
    assert figures(output, "energy, Wh") == ["588", "483", "700"]
    assert "NVIDIA H100 SXM at 100% load" in output
    france = IntensityTable.load().lookup("FRA")
    grams = joules_to_kwh(2_116_800) * france.g_per_kwh
    assert figures(output, "carbon of electricity")[0] == f"{grams:.4g}"
    mid, low, high = map(float, figures(output, "carbon of manufacture"))
    assert low < mid < high
    assert "EcoDiag" in output
    assert "method: estimated:accelerator-rated-power" in output
    assert f"{france.name} ({france.source}, {france.year})" in output


def test_hours_of_a_cpu_scale_with_its_vcpus() -> None:
    question = EstimateOptions(hours=2, vcpus=4, utilisation=1)
    power = vcpu_power(MILAN)
    estimate = answer_to(question, MILAN).estimate
    assert estimate.it_j.mid == pytest.approx(4 * power.max_w * hours_to_seconds(2))
    every = answer_to(EstimateOptions(hours=2, utilisation=1), MILAN).estimate
    assert every.it_j.mid == pytest.approx(2 * estimate.it_j.mid)


def test_without_a_zone_the_grams_are_the_worlds_as_for_serving() -> None:
    output = run("--hours", "1")
    assert output == run("--hours", "1", "--zone", EngineConfig().zone)
    assert "—" not in figures(output, "carbon of electricity")
    world = IntensityTable.load().lookup("WORLD")
    assert f"intensity: {world.g_per_kwh:g} g/kWh, {world.name}" in output


def test_tokens_on_a_cpu() -> None:
    output = run("--parameters-b", "0.135", "--completion-tokens", "1000", "--zone", "WORLD")
    assert "method: estimated:cpu-flops" in output
    assert "0 prompt and 1,000 completion tokens of 0.135 billion parameters on CPUs" in output
    assert figures(output, "carbon of manufacture") == ["—", "—", "—"]
    assert "the time the hardware is held is" in output


def test_tokens_on_a_gpu_say_when_they_are_extrapolated() -> None:
    inside = run("--parameters-b", "8", "--prompt-tokens", "9", "--hardware", "nvidia h100 sxm")
    beyond = run("--parameters-b", "70", "--prompt-tokens", "9", "--hardware", "H200 SXM")
    assert "method: estimated:gpu-step-model" in inside
    assert "extrapolated" not in inside
    assert "extrapolated" in beyond


def test_pue_enters_the_grams_only() -> None:
    words = ("--hours", "1", "--vcpus", "1", "--zone", "DEU")
    plain, cooled = run(*words), run(*words, "--pue", "2")
    assert figures(plain, "energy, J") == figures(cooled, "energy, J")
    grams = [float(figures(output, "carbon of electricity")[0]) for output in (plain, cooled)]
    assert grams[1] == pytest.approx(2 * grams[0], rel=1e-3)


def test_unknown_figures_of_the_hardware_are_dashes() -> None:
    output = run("--hours", "1", "--hardware", "L4")
    assert figures(output, "carbon of manufacture") == ["—", "—", "—"]
    assert "its manufacture is" in output


def test_a_cpu_nobody_knows_is_said_to_be_one() -> None:
    answer = answer_to(EstimateOptions(hours=1), NOBODY)
    assert answer.estimate.method.endswith("generic")
    assert "was not recognised" in answer.notes[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of --hours"),
        (["--hours", "1", "--parameters-b", "1"], "exactly one of --hours"),
        (["--hours", "1", "--prompt-tokens", "5"], "tokens go with --parameters-b"),
        (["--parameters-b", "1"], "--parameters-b needs"),
        (["--parameters-b", "1", "--prompt-tokens", "1", "--vcpus", "2"], "--vcpus goes with"),
        (["--hours", "1", "--hardware", "L4", "--vcpus", "2"], "--vcpus goes with"),
        (["--hours", "1", "--vcpus", "0"], "--vcpus must be at least 1"),
        (["--hours", "-1"], "--hours must be greater than 0"),
        (["--hours", "nan"], "--hours must be finite, not nan"),
        (["--parameters-b", "0", "--prompt-tokens", "1"], "--parameters-b must be greater"),
        (["--parameters-b", "1", "--prompt-tokens", "-1", "--completion-tokens", "9"], "prompt"),
        (["--hours", "1", "--utilisation", "1.5"], "utilisation must be"),
        (["--hours", "1", "--pue", "0.5"], "pue must be"),
        (["--hours", "1", "--zone", "Atlantis"], "no carbon intensity for zone 'Atlantis'"),
        (["--hours", "1", "--hardware", "H100"], "did you mean NVIDIA H100 SXM, NVIDIA H100 PCIe"),
        (["--hours", "1", "--hardware", "abacus"], "unknown accelerator 'abacus'"),
        (
            ["--parameters-b", "1", "--prompt-tokens", "1", "--hardware", "AMD EPYC 7742"],
            "for a GPU, or for --hardware cpu",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    error = CliRunner().invoke(app, ["estimate", *arguments]).exception
    assert isinstance(error, GreenllmError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_the_makers_name_may_be_left_out_and_nothing_else() -> None:
    assert find_accelerator("rtx 4090").name == "NVIDIA RTX 4090"
    assert find_accelerator("L4").name == "NVIDIA L4"
    with pytest.raises(ConfigError, match="did you mean NVIDIA L40S"):
        find_accelerator("L40")
