"""Which devices CUDA programs see, and in which order: CUDA's, not NVML's.

CUDA puts fast devices first unless CUDA_DEVICE_ORDER says otherwise, NVML goes by PCI address, and
CUDA_VISIBLE_DEVICES chooses among them. So the driver is asked, in a process of its own: whoever
has asked it once cannot fork any more without losing CUDA. That process is this file, run as a
program; it needs nothing but the standard library.

Not covered: CUDA outside of Linux and WSL.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import uuid
from pathlib import Path

_NODES = ("nvidiactl", "dxg")
_PATIENCE_S = 30.0


def cuda_uuids(dev: Path = Path("/dev")) -> tuple[str, ...] | None:
    """UUIDs, without what NVML puts before them, as CUDA programs of this process would see them.

    Returns () where there is no device for them, and None where the driver does not answer.
    """
    if not any((dev / node).exists() for node in _NODES):
        return ()
    command = [sys.executable, "-I", "-S", __file__]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(said.stdout.split())


def _ask_driver() -> list[str]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_uuid(driver, i) for i in range(count.value)]


def _uuid(driver: ctypes.CDLL, ordinal: int) -> str:
    device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    if driver.cuDeviceGet(ctypes.byref(device), ordinal) or driver.cuDeviceGetUuid_v2(raw, device):
        raise SystemExit(1)
    return str(uuid.UUID(bytes=bytes(raw)))


if __name__ == "__main__":
    print("\n".join(_ask_driver()))
