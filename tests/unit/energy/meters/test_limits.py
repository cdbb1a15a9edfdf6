"""Which part of the machine a process may use, told from made-up file systems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from greenllm.energy.meters.limits import CpuShare, allowed_threads, cpu_share

V2 = "0::/system.slice/server.service\n"
V1 = "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a\n0::/docker/a\n"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """Files of `/proc` and `/sys`, by their paths below the root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def share(root: Path, num_vcpus: int = 256) -> CpuShare | None:
    return cpu_share(num_vcpus, root / "proc", root / "sys")


def status(cpus: str) -> dict[str, str]:
    return {"proc/self/status": f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\n"}


@pytest.mark.parametrize(
    "files",
    [
        {},
        status("0-255"),
        status("0-511"),
        status("nonsense"),
        {"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "max 100000"},
        {"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "25600000 100000"},
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000",
        },
        {"proc/self/cgroup": "garbage", "sys/fs/cgroup/cpu.max": "100000 0"},
    ],
)
def test_a_process_without_limits_has_the_machine(tmp_path: Path, files: Mapping[str, str]) -> None:
    assert share(tree(tmp_path, files)) is None


@pytest.mark.parametrize(
    ("cgroup", "folder"),
    [
        (V2, "system.slice/server.service"),
        (V2, "system.slice"),
        (V2, ""),
        ("0::/\n", ""),
        (V1, "unified/docker/a"),
    ],
)
def test_a_quota_of_version_two_is_found_in_the_own_group_and_above(
    tmp_path: Path, cgroup: str, folder: str
) -> None:
    group = tmp_path / "sys/fs/cgroup" / folder
    files = {"cpu.max": "200000 100000\n", "cpu.stat": "usage_usec 7500000\nuser_usec 1\n"}
    tree(tmp_path, {"proc/self/cgroup": cgroup, **status("0-255")})
    tree(group, files)
    found = share(tmp_path)
    assert found is not None
    assert (found.num_cpus, found.busy_s()) == (2.0, 7.5)
    assert found.key == f"quota {group}"


@pytest.mark.parametrize("folder", ["cpu,cpuacct/docker/a", "cpu,cpuacct", "cpu"])
def test_a_quota_of_version_one_is_found_where_a_container_sees_it(
    tmp_path: Path, folder: str
) -> None:
    files = {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"}
    tree(tmp_path / "sys/fs/cgroup" / folder, {**files, "cpuacct.usage": "2500000000"})
    found = share(tree(tmp_path, {"proc/self/cgroup": V1}))
    assert found is not None
    assert (found.num_cpus, found.busy_s()) == (1.5, 2.5)


def test_of_several_quotas_the_smallest_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": V2,
        "sys/fs/cgroup/system.slice/cpu.max": "300000 100000",
        "sys/fs/cgroup/system.slice/server.service/cpu.max": "800000 100000",
    }
    found = share(tree(tmp_path, files))
    assert found is not None
    assert found.num_cpus == 3.0
    assert found.key.endswith("system.slice")
    assert found.busy_s() is None, "nobody tells"


STAT = """cpu  1000 0 1000 9 9 0 0 9 0 0
cpu0 100 20 3 9999 9999 4 5 9999 0 0
cpu1 200 0 0 0 0 0 0 0 0 0
cpu10 7000 0 0 0 0 0 0 0 0 0
intr 5 0 0
"""


def test_an_affinity_has_the_time_of_its_processors(tmp_path: Path) -> None:
    found = share(tree(tmp_path, {**status("0-1"), "proc/stat": STAT}))
    assert found is not None
    assert found.num_cpus == 2
    assert found.busy_s() == pytest.approx(3.32)
    assert found.key == "cpus 0,1"


def test_the_smaller_of_affinity_and_quota_counts(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "200000 100000"}
    wide, narrow = (
        share(tree(tmp_path / name, {**files, **status(cpus)}))
        for name, cpus in (("wide", "0-3"), ("narrow", "5"))
    )
    assert wide is not None
    assert narrow is not None
    assert (wide.num_cpus, narrow.num_cpus) == (2.0, 1)
    assert narrow.key == "cpus 5"


def test_processors_that_are_off_are_nobodys(tmp_path: Path) -> None:
    files = {**status("0-1,128-129"), "sys/devices/system/cpu/online": "0-127\n"}
    found = share(tree(tmp_path, files), 128)
    assert found is not None
    assert (found.num_cpus, found.key) == (2, "cpus 0,1")


def test_threads_that_can_be_busy_are_whole_and_one_at_least(tmp_path: Path) -> None:
    assert allowed_threads(8, tmp_path, tmp_path) == 8
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Cpus_allowed_list:\t0-2\n")
    assert allowed_threads(8, tmp_path, tmp_path) == 3
    (tmp_path / "self/cgroup").write_text("0::/\n")
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    (tmp_path / "fs/cgroup/cpu.max").write_text("50000 100000\n")
    assert allowed_threads(8, tmp_path, tmp_path) == 1
