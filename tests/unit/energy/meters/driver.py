"""A driver of NVIDIA boards as tests want it."""

from dataclasses import dataclass
from typing import Any


class NVMLError(Exception):
    """The driver says no."""


@dataclass
class Value:
    uiVal: int  # noqa: N815  (pynvml's name)


@dataclass
class Field:
    nvmlReturn: int  # noqa: N815
    value: Value


class Driver:
    """As many boards as there are figures; None stands for a call that fails.

    Boards are numbers and have UUIDs like `GPU-0-board`. The first board has the instances of
    `instances`, with the figures that are given there; it is split where there are any.
    """

    NVMLError: type[Exception] = NVMLError

    def __init__(
        self,
        *,
        energy_mj: list[int | None] | None = None,
        power_mw: list[int | None] | None = None,
        instant_mw: list[int | None] | None = None,
        instances: dict[str, int | None] | None = None,
        init_error: str = "",
        count_error: str = "",
    ) -> None:
        self.energy_mj = energy_mj or []
        self.power_mw = power_mw or []
        self.instant_mw = instant_mw or []
        self.instances = instances or {}
        self._init_error = init_error
        self._count_error = count_error

    def nvmlInit(self) -> None:  # noqa: N802
        if self._init_error:
            raise NVMLError(self._init_error)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self._count_error:
            raise NVMLError(self._count_error)
        return max(len(self.energy_mj), len(self.power_mw), len(self.instant_mw))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        if index >= self.nvmlDeviceGetCount():
            raise NVMLError("invalid argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:  # noqa: N802
        for board in range(self.nvmlDeviceGetCount()):
            if uuid == self.nvmlDeviceGetUUID(board):
                return board
        if uuid in self.instances:
            return uuid
        raise NVMLError("not found")

    def nvmlDeviceGetUUID(self, handle: Any) -> str:  # noqa: N802
        return f"GPU-{handle}-board" if isinstance(handle, int) else handle

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:  # noqa: N802
        if not isinstance(handle, int):
            raise NVMLError("invalid argument")
        return [int(handle == 0 and bool(self.instances)), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:  # noqa: N802
        if index >= len(self.instances):
            raise NVMLError("not found")
        return list(self.instances)[index]

    def nvmlDeviceIsMigDeviceHandle(self, handle: Any) -> int:  # noqa: N802
        return int(not isinstance(handle, int))

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: Any) -> Any:  # noqa: N802
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
        if not isinstance(handle, int):
            return _known([self.instances[handle]], 0)
        return _known(self.energy_mj, handle)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        return _known(self.power_mw, handle)

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> list[Field]:  # noqa: N802
        assert fields == [186]
        try:
            return [Field(0, Value(_known(self.instant_mw, handle)))]
        except NVMLError:
            return [Field(3, Value(0))]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:  # noqa: N802
        if not isinstance(handle, int):
            raise NVMLError("not supported")
        return 700_000


def _known(values: list[int | None], index: Any) -> int:
    value = values[index] if isinstance(index, int) and index < len(values) else None
    if value is None:
        raise NVMLError("not supported")
    return value
