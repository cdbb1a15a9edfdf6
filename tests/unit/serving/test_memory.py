"""How much memory is left, told from made-up file systems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from serving.memory import free_bytes

MEMINFO = {"proc/meminfo": "MemTotal: 8000 kB\nMemFree: 1000 kB\nMemAvailable: 4000 kB\n"}
GROUP = "sys/fs/cgroup/a/"
V2 = {"proc/self/cgroup": "0::/a\n"}
V1 = {"proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a\n"}


def free(root: Path, files: Mapping[str, str]) -> int | None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return free_bytes(root / "proc", root / "sys")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"proc/meminfo": "garbage\n"}, None),
        (MEMINFO, 4_096_000),
        ({**MEMINFO, **V2, f"{GROUP}memory.max": "max", f"{GROUP}memory.current": "7"}, 4_096_000),
        ({**MEMINFO, **V2, f"{GROUP}memory.max": "9000", f"{GROUP}memory.current": "7000"}, 2000),
        ({**V2, f"{GROUP}memory.max": "9000", f"{GROUP}memory.current": "9500"}, 0),
        (
            {
                **V2,
                f"{GROUP}memory.max": "9000",
                f"{GROUP}memory.current": "7000",
                f"{GROUP}memory.stat": "anon 1\ninactive_file 500\n",
            },
            2500,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9000",
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "8000",
                "sys/fs/cgroup/memory/a/memory.stat": "total_inactive_file 1\n",
            },
            1001,
        ),
    ],
)
def test_the_least_of_machine_and_groups(
    tmp_path: Path, files: Mapping[str, str], found: int | None
) -> None:
    assert free(tmp_path, files) == found


def test_a_group_above_counts_too(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        f"{GROUP}memory.max": "100",
        f"{GROUP}memory.current": "40",
    }
    assert free(tmp_path, files) == 60


def test_the_real_machine_has_some() -> None:
    assert (free_bytes() or 1) > 0
