"""`greenllm doctor`: what this machine can measure, what was chosen and why.

Contract: looks, changes nothing, and succeeds also where only the model works. Versions come from
package metadata; of what computes only OpenVINO is loaded, and asked for what it can do. With
`--cross-check` it keeps the processors busy for some seconds. Not covered: repairs; sensors
`greenllm.energy.meters.choose` does not know; whether the GPU computes correctly.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from greenllm.clashes import find_clashes
from greenllm.cli.calibrate import described
from greenllm.cli.crosscheck import cross_check
from greenllm.cli.options import DataDir
from greenllm.config import ConfigError, variable
from greenllm.energy.carbon.policy import intensity_source, world_warning
from greenllm.energy.forecast import Interval
from greenllm.energy.hardware import CpuInfo, VcpuPower, read_cpu_info, vcpu_power
from greenllm.energy.ledger import Ledger
from greenllm.energy.ledger_schema import LedgerError
from greenllm.energy.meters.calibrated import CalibrationError, read_calibration
from greenllm.energy.meters.choose import WORKS, Rung, ladder, lost_domains
from greenllm.energy.meters.limits import CpuShare, allowed_threads, cpu_share
from greenllm.energy.meters.registry import DOMAINS, Domain
from greenllm.energy.meters.scope import Scope
from greenllm.figures import UNKNOWN, make_console, make_table, number, print_table
from greenllm.model.spec import FAMILIES
from greenllm.options import CarbonOptions
from greenllm.places import cache_path, calibration_path, ledger_path
from greenllm.runner.openvino.machine import TESTED, computes_bfloat16, is_tested
from greenllm.runner.passes import Passed, remembered

PACKAGES = (
    *("greenllm", "torch", "transformers", "openvino", "bitsandbytes", "accelerate", "peft"),
)
_RAPL_FILES = "/sys/class/powercap/intel-rapl*:*/energy_uj"
_RAPL_RULE = (
    'SUBSYSTEM=="powercap", KERNEL=="intel-rapl*:*", ACTION=="add",'
    ' RUN+="/bin/chgrp rapl /sys%p/energy_uj", RUN+="/bin/chmod 440 /sys%p/energy_uj"'
)
RAPL_RECIPE = (
    "to read RAPL without root, give the counters to a group:",
    "  sudo groupadd --system rapl && sudo usermod --append --groups rapl $USER",
    f"  echo '{_RAPL_RULE}' | sudo tee /etc/udev/rules.d/70-rapl.rules",
    "  sudo udevadm control --reload",
    "  sudo udevadm trigger --action=add --subsystem-match=powercap",
    "  then log in again. Until the next boot only, without a rule:",
    f"  sudo chgrp rapl {_RAPL_FILES} && sudo chmod 440 {_RAPL_FILES}",
    "security: who can read these counters can learn keys of other processes (CVE-2020-8694,",
    "  PLATYPUS). Give them to one group, never to all, and not where strangers run code.",
)


def doctor(
    data_dir: DataDir = None,
    check: Annotated[
        bool,
        typer.Option(
            "--cross-check",
            help="Keep all processors busy for some seconds, and compare what each meter, and"
            " CodeCarbon and Zeus where they are installed, count.",
        ),
    ] = False,
) -> None:
    """Print everything there is to know."""
    console = make_console()
    cpu = read_cpu_info()
    ladders = {domain: list(ladder(domain, Scope())) for domain in DOMAINS}
    print_table(console, "Meters, best first", rung_table(ladders))
    if lost := lost_domains(ladders, Scope()):
        print_lines(console, "Lost", lost_lines(lost))
    lines = [*cpu_lines(cpu, vcpu_power(cpu)), *share_lines(cpu_share(cpu.num_vcpus))]
    lines += calibration_lines(calibration_path(), cpu)
    print_lines(console, "Processor", lines)
    print_lines(console, "Carbon", carbon_lines(os.environ.get(variable("zone"))))
    rapl = next(rung for rung in ladders["cpu"] if rung.name == "rapl")
    print_lines(console, "RAPL", rapl_lines(rapl, is_virtual=is_virtual()))
    print_lines(console, "Runner", [*runner_lines(), *selfcheck_lines(cache_path())])
    print_lines(console, "Software", version_lines())
    print_lines(console, "Names", find_clashes() or ["no other package uses greenllm's names"])
    path = ledger_path(data_dir)
    print_lines(console, "Ledger", [str(path), ledger_state(path)])
    if check:
        cross_check(console, ladders, allowed_threads(cpu.num_vcpus))


def print_lines(console: Console, heading: str, lines: Iterable[str]) -> None:
    """Print a heading and what belongs to it."""
    console.print(heading, style="bold")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)
    console.print()


def rung_table(ladders: Mapping[Domain, Sequence[Rung]]) -> Table:
    """One row per method, best first; the first that works in each domain is chosen."""
    columns = ("domain", "rung", "works", "updates", "± 90 %", "method, or why not")
    table = make_table(columns, num_text=len(columns))
    for domain, rungs in ladders.items():
        chosen = next((rung for rung in rungs if rung.meter is not None), None)
        for rung in rungs:
            table.add_row(domain, *rung_cells(rung, chosen=rung is chosen))
        table.add_section()
    return table


def rung_cells(rung: Rung, *, chosen: bool) -> tuple[str, ...]:
    """Everything about one method but its domain."""
    meter = rung.meter
    if meter is None:
        return rung.name, "no", UNKNOWN, UNKNOWN, rung.reason
    state = "chosen" if chosen else "yes"
    period, spread = f"{meter.period_s * 1000:g} ms", f"{meter.uncertainty:.0%}"
    doubts = "" if rung.reason == WORKS else f": {rung.reason}"
    return rung.name, state, period, spread, f"{meter.method}{doubts}"


def lost_lines(lost: Mapping[str, str]) -> list[str]:
    """What computes here and is not counted, and what follows from that."""
    return [
        f"{domain}: {reason}. What a model on it costs is not known: its receipts have no total"
        for domain, reason in lost.items()
    ]


def cpu_lines(cpu: CpuInfo, power: VcpuPower) -> list[str]:
    """What the processor is and what its family draws."""
    name = cpu.model_name or "unknown processor"
    family = f"not recognised, {power.family} figures" if power.is_generic else power.family
    return [
        f"{name}, {cpu.num_vcpus} vCPUs; family: {family}",
        f"idle {_watts(power.min_w, power)}, full load {_watts(power.max_w, power)} (90 %)",
        f"source: {power.source}",
    ]


def share_lines(share: CpuShare | None) -> list[str]:
    """The part of the processor that this process may use, where it is not all."""
    if share is None:
        return []
    return [f"this process may use {share.num_cpus:g} of them: {share.key}"]


def calibration_lines(path: Path, cpu: CpuInfo) -> list[str]:
    """What a wall meter said of this machine, or why that does not count."""
    try:
        found = read_calibration(path, cpu)
    except CalibrationError as error:
        return [f"the calibration is not used: {error}"]
    if found is None:
        return ["not calibrated: `greenllm calibrate` fits these watts to a meter at the wall"]
    return [described(found)]


def carbon_lines(zone: str | None) -> list[str]:
    """Which intensity a server would use here, and what is wrong with it."""
    options = CarbonOptions() if zone is None else CarbonOptions(zone=zone)
    try:
        value = intensity_source(options).intensity(0.0)
    except ConfigError as error:
        return [str(error)]
    line = f"{value.g_per_kwh:g} g/kWh, {value.name}, {value.year} ({value.source})"
    return [line, *filter(None, [world_warning(options)])]


def _watts(watts: float, power: VcpuPower) -> str:
    spread = Interval.around(watts, power.relative_uncertainty)
    return f"{number(watts)} W per vCPU [{spread.low:.2g} to {spread.high:.2g}]"


def is_virtual(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the kernel says that it runs on a hypervisor."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return any("hypervisor" in words for words in flags)


def rapl_lines(rung: Rung, *, is_virtual: bool) -> list[str]:
    """Why RAPL does not work, and what can be done about it."""
    if rung.meter is not None:
        return [rung.reason]
    if "stands still" in rung.reason:
        return [f"{rung.reason}: the counters are there, and count nothing"]
    if "permission denied" in rung.reason:
        return [rung.reason, *RAPL_RECIPE]
    if is_virtual:
        return ["not available: this is a virtual machine, and its host keeps the counters"]
    return [
        f"{rung.reason}: the processor has none, its module is missing (sudo modprobe"
        " intel_rapl_msr, for AMD too), or a container hides /sys/devices/virtual/powercap",
        *RAPL_RECIPE,
    ]


def runner_lines() -> list[str]:
    """Which runner serves which models here, and in which arithmetic."""
    found = installed("openvino")
    if found is None:
        advice = f"OpenVINO is not installed: pip install 'openvino{TESTED}'"
        return [f"torch for all models, several times slower on CPUs: {advice}"]
    untested = f"not the tested one ({TESTED}): it is used where the self-check passes"
    lines = [
        f"openvino on CPUs for {', '.join(FAMILIES)}; torch for other models and on GPUs",
        f"OpenVINO {found} is {'a tested version' if is_tested(found) else untested}",
    ]
    try:
        fast = computes_bfloat16()
    except Exception as error:
        return [*lines, f"OpenVINO does not work: {' '.join(str(error).split())}"]
    quantized = "bfloat16" if fast else "float32 with 8-bit activations (no bfloat16 on this CPU)"
    return [*lines, f"quantized weights are computed in {quantized}, others in float32"]


def selfcheck_lines(cache_dir: Path) -> list[str]:
    """Comparisons of OpenVINO with torch that passed here."""
    passes = remembered(cache_dir)
    if not passes:
        return [f"no self-check is remembered in {cache_dir}: it runs when a model first loads"]
    alike: dict[Passed, list[Passed]] = {}
    for passed in passes:
        alike.setdefault(replace(passed, difference=0.0), []).append(passed)
    return ["self-checks that passed:", *(f"  {_worst(found)}" for found in alike.values())]


def _worst(alike: Sequence[Passed]) -> str:
    """One line for checks that differ in details only, or in versions of other packages."""
    worst = max(alike, key=lambda passed: passed.difference)
    return f"{worst}; the worst of {len(alike)} alike" if len(alike) > 1 else str(worst)


def version_lines() -> list[str]:
    """What is installed, without importing it."""
    lines = [f"{name} {installed(name) or 'is not installed'}" for name in PACKAGES]
    driver = Path("/sys/module/nvidia/version")
    found = driver.read_text().strip() if os.access(driver, os.R_OK) else None
    return [*lines, f"CUDA {cuda_version()}", f"NVIDIA driver {found or 'not loaded'}"]


def installed(name: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cuda_version() -> str:
    """The CUDA that torch was built for, as far as metadata tells."""
    _, _, local = (installed("torch") or "").partition("+")
    if local:
        return "none: CPU build of torch" if local == "cpu" else f"of torch: {local}"
    names = {item.name: item.version for item in distributions()}
    runtimes = (names[name] for name in sorted(names) if name.startswith("nvidia-cuda-runtime"))
    runtime = next(runtimes, None)
    return f"runtime {runtime}" if runtime else UNKNOWN


def ledger_state(path: Path) -> str:
    """Whether the ledger can be written, without writing it."""
    if not os.path.exists(path):
        folder = next(parent for parent in path.parents if os.path.exists(parent))
        usable = os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
        made = "does not exist yet; `greenllm serve` makes it"
        return made if usable else f"cannot be made: {folder} is not a folder that can be written"
    try:
        Ledger(path, read_only=True).close()
    except LedgerError as error:
        return f"cannot be used: {error}"
    # SQLite writes two more files beside it.
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return "can be written" if writable else "can be read, but not written"
