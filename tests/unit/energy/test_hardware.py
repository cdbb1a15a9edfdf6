"""CPUs are recognised or honestly generic; rated figures are looked up, never invented."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.energy.hardware import (
    CpuInfo,
    UnknownAcceleratorError,
    accelerator,
    accelerators,
    read_cpu_info,
    vcpu_power,
)
from greenllm.energy.tables import read_table

X86_THREAD = """processor\t: {index}
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
power management:

"""
ARM_THREAD = """processor\t: {index}
BogoMIPS\t: 2100.00
CPU implementer\t: {implementer}
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {part}

"""


def _cpu(vendor: str, cpu_family: int | None, model: int | None) -> CpuInfo:
    return CpuInfo(vendor, cpu_family, model, "", 1)


def _family(row: dict[str, str]) -> CpuInfo:
    name = next((name for name, family in NAMES.items() if family in row["family"]), "")
    return CpuInfo(row["vendor"], int(row["cpu_family"]), int(row["model_min"]), name, 1)


NAMES = {
    "AMD EPYC 9754 128-Core Processor": "(Bergamo)",
    "AMD EPYC 9734 112-Core Processor": "(Bergamo)",
    "AMD EPYC 8024P 8-Core Processor": "(Siena)",
    "AMD EPYC 8534PN 64-Core Processor": "(Siena)",
    "AMD EPYC Processor": "(Bergamo and Siena)",
}
CLIENTS = {
    "Intel(R) Core(TM) i7-8565U CPU @ 1.80GHz": "Laptop",
    "11th Gen Intel(R) Core(TM) i5-1145G7 @ 2.60GHz": "Laptop",
    "13th Gen Intel(R) Core(TM) i9-13900HX": "Laptop",
    "Intel(R) Core(TM) Ultra 7 155H": "Laptop",
    "AMD Ryzen 7 5800H with Radeon Graphics": "Laptop",
    "AMD Ryzen AI 9 HX 370 w/ Radeon 890M": "Laptop",
    "Intel(R) Core(TM) i9-9900K CPU @ 3.60GHz": "Desktop",
    "12th Gen Intel(R) Core(TM) i5-12400F": "Desktop",
    "Intel(R) Core(TM) Ultra 9 285K": "Desktop",
    "AMD Ryzen 9 5950X 16-Core Processor": "Desktop",
    "AMD Ryzen 5 5600G with Radeon Graphics": "Desktop",
}


@pytest.mark.parametrize(("name", "family"), NAMES.items())
def test_zen_4c_servers_are_told_apart_by_their_names(name: str, family: str) -> None:
    power = vcpu_power(CpuInfo("AuthenticAMD", 25, 160, name, 1))
    assert family in power.family
    assert not power.is_generic


def test_an_idle_bergamo_is_not_charged_for_the_boards_of_small_sienas() -> None:
    powers = {
        family: vcpu_power(CpuInfo("AuthenticAMD", 25, 160, name, 1))
        for name, family in NAMES.items()
    }
    bergamo, siena = powers["(Bergamo)"], powers["(Siena)"]
    assert (bergamo.min_w, siena.min_w) == (0.243, 1.124)
    assert bergamo.relative_uncertainty < 0.2
    assert siena.relative_uncertainty > 1.5


@pytest.mark.parametrize(("name", "kind"), CLIENTS.items())
def test_desktops_and_laptops_have_figures_of_their_own(name: str, kind: str) -> None:
    """Also those whose CPUID model is a server's."""
    for model in (158, 167, 183, 999):
        power = vcpu_power(CpuInfo("GenuineIntel", 6, model, name, 1))
        assert power.family.startswith(kind)
        assert power.is_generic
        assert power.relative_uncertainty >= 1


@pytest.mark.parametrize(
    "name", ["Intel(R) Xeon(R) E-2288G CPU @ 3.70GHz", "Intel Core Processor (Haswell, no TSX)", ""]
)
def test_servers_and_virtual_machines_are_no_desktops(name: str) -> None:
    assert "Xeon" in vcpu_power(CpuInfo("GenuineIntel", 6, 158, name, 1)).family


def test_x86_cpuinfo(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("".join(X86_THREAD.format(index=index) for index in range(2)))
    assert read_cpu_info(path) == CpuInfo("AuthenticAMD", 25, 1, "AMD EPYC", 2)


def test_aarch64_cpuinfo(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    threads = [ARM_THREAD.format(index=i, implementer="0x41", part="0xd0c") for i in range(4)]
    path.write_text("".join(threads))
    cpu = read_cpu_info(path)
    assert cpu == CpuInfo("0x41", 8, 0xD0C, "", 4)
    assert "Neoverse N1" in vcpu_power(cpu).family


def test_32_bit_arm_title_is_not_a_thread(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("Processor\t: ARMv7\nprocessor\t: 0\nCPU architecture: AArch64\n")
    cpu = read_cpu_info(path)
    assert (cpu.num_vcpus, cpu.cpu_family) == (1, None)
    assert vcpu_power(cpu).is_generic


def test_absent_cpuinfo_is_an_unknown_cpu(tmp_path: Path) -> None:
    cpu = read_cpu_info(tmp_path / "nothing")
    assert cpu == CpuInfo("unknown", None, None, "", os.cpu_count() or 1)
    assert vcpu_power(cpu).is_generic


def test_this_machine_has_a_power() -> None:
    cpu = read_cpu_info()
    power = vcpu_power(cpu)
    assert cpu.num_vcpus >= 1
    assert 0 < power.min_w < power.max_w


@pytest.mark.parametrize(
    ("vendor", "cpu_family", "model", "name", "min_w", "max_w"),
    [
        ("AuthenticAMD", 25, 1, "Milan", 0.456, 1.957),
        ("AuthenticAMD", 23, 49, "Rome", 0.474, 1.693),
        ("AuthenticAMD", 26, 2, "Turin", 0.235, 1.323),
        ("AuthenticAMD", 26, 17, "Turin", 0.235, 1.323),
        ("GenuineIntel", 6, 79, "Broadwell", 0.713, 3.685),
        ("GenuineIntel", 6, 143, "Sapphire Rapids", 1.064, 4.064),
    ],
)
def test_golden_families(
    vendor: str, cpu_family: int, model: int, name: str, min_w: float, max_w: float
) -> None:
    power = vcpu_power(_cpu(vendor, cpu_family, model))
    assert name in power.family
    assert (power.min_w, power.max_w) == (min_w, max_w)
    assert not power.is_generic


@pytest.mark.parametrize(
    "cpu",
    [
        _cpu("AuthenticAMD", 25, 33),
        _cpu("GenuineIntel", 25, 1),
        _cpu("AuthenticAMD", 25, None),
        _cpu("AuthenticAMD", None, 1),
        _cpu("unknown", None, None),
    ],
)
def test_unknown_cpus_are_generic(cpu: CpuInfo) -> None:
    power = vcpu_power(cpu)
    assert power.is_generic
    assert power.relative_uncertainty > vcpu_power(_cpu("AuthenticAMD", 25, 1)).relative_uncertainty


def test_every_family_row_is_attributed_and_plausible() -> None:
    for row in read_table("vcpu_watts.csv"):
        assert row["source"]
        assert row["licence"]
        assert int(row["year"]) >= 2020
        assert 0.1 < float(row["min_w"]) < float(row["max_w"]) < 10
        assert 0 < float(row["relative_uncertainty_90"]) < 2
        assert 0 < float(row["idle_relative_uncertainty_90"]) < 2


def test_rows_without_servers_say_that_they_are_copied() -> None:
    copied = [row for row in read_table("vcpu_watts.csv") if int(row["rows_used"]) == 0]
    assert len(copied) == 2
    for row in copied:
        assert "Graviton" in row["family"]
        assert "not measured" in row["source"]
    measured = [row for row in read_table("vcpu_watts.csv") if row not in copied]
    few = [row["family"] for row in measured if int(row["rows_used"]) < 5]
    assert few == ["Laptop processors (Core; Ryzen)"], "from rated power, as it says"


def test_every_family_is_reached_by_its_own_model() -> None:
    for row in read_table("vcpu_watts.csv"):
        if row["vendor"]:
            assert vcpu_power(_family(row)).family == row["family"]


def test_the_generic_row_is_the_mean_of_the_measured_families() -> None:
    rows = read_table("vcpu_watts.csv")
    whole = [row for row in rows if row["vendor"] and not row["name_pattern"]]
    measured = [row for row in whole if int(row["rows_used"])]
    generic = vcpu_power(_cpu("unknown", None, None))
    mean_min_w = sum(float(row["min_w"]) for row in measured) / len(measured)
    mean_max_w = sum(float(row["max_w"]) for row in measured) / len(measured)
    assert generic.min_w == pytest.approx(mean_min_w, abs=1e-3)
    assert generic.max_w == pytest.approx(mean_max_w, abs=1e-3)


@given(st.floats(0, 1), st.floats(0, 1))
def test_power_grows_with_utilisation(one: float, other: float) -> None:
    power = vcpu_power(_cpu("AuthenticAMD", 25, 1))
    low, high = sorted((one, other))
    assert power.min_w <= power.power_w(low) <= power.power_w(high) <= power.max_w + 1e-9


@pytest.mark.parametrize("utilisation", [-0.1, 1.1, float("nan")])
def test_no_utilisation_outside_its_range(utilisation: float) -> None:
    with pytest.raises(ValueError, match="utilisation must be from 0 to 1"):
        vcpu_power(_cpu("AuthenticAMD", 25, 1)).power_w(utilisation)


def test_every_accelerator_row_is_attributed_and_plausible() -> None:
    for row in read_table("accelerators.csv"):
        assert row["source"]
        assert row["licence"]
        assert 2010 <= int(row["year"]) <= 2026
    for item in accelerators():
        assert 10 <= item.tdp_w <= 1500
        assert item.idle_w is None or 0 < item.idle_w < item.tdp_w
        assert item.embodied_kg is None or 0 < item.embodied_kg < 1000
    assert len({item.name for item in accelerators()}) == len(accelerators()) >= 20


def test_accelerators_are_found_in_any_case() -> None:
    assert accelerator(" nvidia h100 sxm ").tdp_w == 700
    assert accelerator("NVIDIA H100 SXM").embodied_kg == 164
    assert accelerator("NVIDIA L4").embodied_kg is None
    assert accelerator("NVIDIA L4").idle_w is None


def test_an_unknown_accelerator_suggests_names() -> None:
    with pytest.raises(UnknownAcceleratorError, match=r"did you mean.*NVIDIA H100"):
        accelerator("NVIDIA H100")
    with pytest.raises(ValueError, match="unknown accelerator 'abacus'"):
        accelerator("abacus")
