"""Finds the handles of the GPUs that compute: by UUID, for NVML and CUDA number devices apart.

Contract: a device is the board, or the part of it (MIG), that CUDA programs of this process see
under that name; never more than that. Where there is more than one to choose from, CUDA is asked
for its order. Where it does not answer, NVML's order is assumed, and `Found.assumption` says so
unless CUDA_DEVICE_ORDER=PCI_BUS_ID makes it true.

Not covered: devices that a child process is given by another CUDA_VISIBLE_DEVICES than ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from greenllm.energy.meters.protocol import SensorError

_KINDS = ("GPU-", "MIG-")
_ORDINAL = "cuda:"
_ASSUMPTION = (
    "CUDA does not tell its order of devices, so NVML's is assumed: CUDA_DEVICE_ORDER=PCI_BUS_ID"
    " makes them alike"
)


class NvmlDevices(Protocol):
    """The part of the pynvml module that finds devices."""

    NVMLError: type[Exception]

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  (pynvml's names)
        """Number of boards."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        """Handle of one board."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:  # noqa: N802
        """Handle of one board or MIG instance by its UUID."""

    def nvmlDeviceGetUUID(self, handle: Any) -> str:  # noqa: N802
        """UUID of a device."""

    def nvmlDeviceGetMigMode(self, handle: Any) -> Sequence[int]:  # noqa: N802
        """Whether a board is split into instances, now and after its next reset."""

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:  # noqa: N802
        """How many instances a board may have."""

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:  # noqa: N802
        """Handle of an instance of a board."""


@dataclass(frozen=True, slots=True)
class Device:
    """A board or an instance of one."""

    handle: Any
    name: str


@dataclass(frozen=True, slots=True)
class Found:
    """Devices, and what had to be assumed to find them."""

    devices: tuple[Device, ...]
    assumption: str | None = None


def find_devices(
    nvml: NvmlDevices,
    wanted: Sequence[str] | None = None,
    *,
    environment: Mapping[str, str],
    cuda: Callable[[], Sequence[str] | None],
) -> Found:
    """The devices that are wanted, `cuda:N` or UUIDs; None is all that CUDA programs see.

    Raises:
        SensorError: there is none, or one of them cannot be told.
    """
    assumption = None
    try:
        if wanted is None or any(name.startswith(_ORDINAL) for name in wanted):
            seen, assumption = _seen(nvml, wanted, environment, cuda)
            wanted = seen if wanted is None else [_name_of(name, seen) for name in wanted]
        devices = tuple(_device(nvml, name) for name in wanted)
    except nvml.NVMLError as error:
        raise SensorError(f"nvml: {error}") from error
    if not devices:
        raise SensorError("nvml: no device")
    return Found(devices, assumption)


def _seen(
    nvml: NvmlDevices,
    wanted: Sequence[str] | None,
    environment: Mapping[str, str],
    cuda: Callable[[], Sequence[str] | None],
) -> tuple[Sequence[str], str | None]:
    """The names of what CUDA programs see, in CUDA's order, and what was assumed."""
    count = nvml.nvmlDeviceGetCount()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = _visible(visible, count)
    boards = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    is_by_bus = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    is_clear = count <= 1 or is_by_bus or (wanted is None and visible is None)
    are_whole = not any(_is_split(nvml, board) for board in boards)
    if (is_clear and are_whole) or not any(name.isdigit() for name in names):
        return names, None
    told = cuda()
    if told is not None:
        return told, None
    return names, None if is_by_bus else _ASSUMPTION


def _visible(value: str | None, count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, up to the first that is wrong, as for CUDA."""
    if value is None:
        return [str(i) for i in range(count)]
    names: list[str] = []
    for name in (name.strip() for name in value.split(",")):
        is_right = int(name) < count if name.isdigit() else name.startswith(_KINDS)
        if not is_right:
            break
        names.append(name)
    return names


def _name_of(name: str, seen: Sequence[str]) -> str:
    if not name.startswith(_ORDINAL):
        return name
    ordinal = int(name.removeprefix(_ORDINAL))
    if ordinal >= len(seen):
        raise SensorError(f"nvml: {name} is not among the {len(seen)} devices that CUDA sees")
    return seen[ordinal]


def _device(nvml: NvmlDevices, name: str) -> Device:
    if name.isdigit():
        name, handle = f"GPU {name}", nvml.nvmlDeviceGetHandleByIndex(int(name))
    else:
        handle = _by_uuid(nvml, name)
    if not name.startswith("MIG-") and _is_split(nvml, handle):
        why = "is split (MIG), and which instance computes is not known"
        raise SensorError(f"nvml: {name} {why}: name it in CUDA_VISIBLE_DEVICES")
    return Device(handle, name)


def _by_uuid(nvml: NvmlDevices, name: str) -> Any:
    """A device by its UUID, by the beginning of it, or without the kind before it."""
    for full in (name, *(kind + name for kind in _KINDS)):
        try:
            return nvml.nvmlDeviceGetHandleByUUID(full)
        except nvml.NVMLError:
            continue
    found = [handle for handle in _all(nvml) if nvml.nvmlDeviceGetUUID(handle).startswith(name)]
    if len(found) != 1:
        raise SensorError(f"nvml: {name} is {'no device' if not found else 'several devices'}")
    return found[0]


def _all(nvml: NvmlDevices) -> Iterator[Any]:
    """Every board, and every instance of one that is split."""
    for i in range(nvml.nvmlDeviceGetCount()):
        board = nvml.nvmlDeviceGetHandleByIndex(i)
        yield board
        if _is_split(nvml, board):
            for j in range(nvml.nvmlDeviceGetMaxMigDeviceCount(board)):
                with contextlib.suppress(nvml.NVMLError):
                    yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(board, j)


def _is_split(nvml: NvmlDevices, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False
