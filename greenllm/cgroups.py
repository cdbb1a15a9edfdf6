"""The cgroups that this process is in: where Linux keeps what a container may use, and uses.

Not covered: cgroups above a container, which it cannot see.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cgroups(
    controller: str, proc: Path = Path("/proc"), sys: Path = Path("/sys")
) -> Iterator[Path]:
    """The folders of this process's cgroup with a controller's files, and of those above it.

    A container sees its own as the root, whatever its path is called outside.
    """
    for line in text_of(proc / "self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        names = controllers.split(",")
        if controllers and controller not in names:
            continue
        roots = (
            dict.fromkeys((controllers, controller, "cpu,cpuacct"))
            if controllers
            else ("", "unified")
        )
        for root in roots:
            mounted = sys / "fs/cgroup" / root
            own = mounted / path.strip("/")
            yield from (own, *own.parents[: len(own.parts) - len(mounted.parts)])


def text_of(path: Path) -> str:
    """What a file says; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
