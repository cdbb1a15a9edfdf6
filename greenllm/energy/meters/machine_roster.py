"""The roster that the servers of a machine and user share unless told otherwise.

Contract: `join_roster` never fails a start. Where the folder cannot be made, belongs to somebody
else or its lock is held, it warns and returns None: then this server pays the whole idle floor.
Rosters are apart for what is not one machine: another boot, another process namespace (nobody
there could tell who lives), another share of the processors.

Not covered: servers of different users, unless they are given one folder that all may write.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

from greenllm.energy.hardware import read_cpu_info
from greenllm.energy.meters.limits import cpu_share
from greenllm.energy.meters.roster import Roster

log = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"


def join_roster(
    choice: str, *, proc: Path = Path("/proc"), sys: Path = Path("/sys")
) -> Roster | None:
    """Join the roster in a folder: `auto` is the user's, `off` is none."""
    if choice == OFF:
        return None
    try:
        folder = user_folder() if choice == AUTO else _made(Path(choice))
        return Roster(folder / f"{_machine(proc, sys)}.roster")
    except OSError as error:
        log.warning(
            "no roster of this machine's servers: %s; the whole idle power counts here", error
        )
        return None


def user_folder() -> Path:
    """A folder of this machine and user: in XDG_RUNTIME_DIR, else for temporary files.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return private_folder(Path(runtime) / "greenllm")
    return private_folder(Path(tempfile.gettempdir()) / f"greenllm-{os.getuid()}")


def private_folder(path: Path) -> Path:
    """Make a folder that only this user may enter, or check that it is one.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to somebody else; remove it, or set TMPDIR")
    if found.st_mode & 0o077:
        path.chmod(0o700)
    return path


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _machine(proc: Path, sys: Path) -> str:
    """A name for what is shared: the boot, the process namespace, the share of the processors."""
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(proc / "self/ns/pid")
    except OSError:  # not Linux
        boot = namespace = ""
    share = cpu_share(read_cpu_info(proc / "cpuinfo").num_vcpus, proc, sys)
    key = f"{boot} {namespace} {share.key if share else ''}"
    return hashlib.sha256(key.encode()).hexdigest()[:12]
