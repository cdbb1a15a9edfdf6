"""The devices that are metered are those that compute, whoever numbers them."""

from collections.abc import Callable, Sequence

import pytest

from greenllm.energy.meters.nvml_devices import find_devices
from greenllm.energy.meters.protocol import SensorError
from tests.unit.energy.meters.driver import Driver

BOARDS = Driver(energy_mj=[1, 1, 1, 1])
SPLIT = Driver(energy_mj=[1, 1], instances={"MIG-aa": 1, "MIG-ab": 1})
Order = Callable[[], Sequence[str] | None]


def not_asked() -> Sequence[str]:
    raise AssertionError("CUDA need not be asked")


def handles(
    driver: Driver,
    wanted: Sequence[str] | None = None,
    *,
    visible: str | None = None,
    cuda: Order = not_asked,
    by_bus: bool = True,
) -> list[object]:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if by_bus else {}
    found = find_devices(driver, wanted, environment=environment, cuda=cuda)
    return [device.handle for device in found.devices]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("1", [1]),
        ("GPU-0-board, 2", [0, 2]),
        ("GPU-3", [3]),
        ("2,-1,1", [2]),
        ("0,7,1", [0]),
    ],
)
def test_what_cuda_programs_see_is_metered(visible: str | None, expected: list[int]) -> None:
    assert handles(BOARDS, visible=visible) == expected


def test_a_device_is_counted_among_those_that_are_seen() -> None:
    assert handles(BOARDS, ["cuda:1"], visible="3,2,1") == [2]
    assert handles(BOARDS, ["cuda:1"], visible="GPU-3,GPU-0", by_bus=False) == [0]
    assert handles(BOARDS, ["GPU-2-board"], by_bus=False) == [2]


def test_cudas_own_order_is_asked_for_where_it_matters() -> None:
    order = ("2-board", "0-board")
    assert handles(BOARDS, ["cuda:0"], cuda=lambda: order, by_bus=False) == [2]
    assert handles(BOARDS, visible="1,0", cuda=lambda: order, by_bus=False) == [2, 0]


def test_where_there_is_no_choice_nobody_is_asked() -> None:
    assert handles(Driver(energy_mj=[1]), ["cuda:0"], by_bus=False) == [0]
    assert handles(BOARDS, by_bus=False) == [0, 1, 2, 3]


def test_an_order_that_is_not_known_is_assumed_and_said() -> None:
    def found(wanted: Sequence[str], **environment: str) -> str | None:
        return find_devices(BOARDS, wanted, environment=environment, cuda=lambda: None).assumption

    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in (found(["cuda:1"]) or "")
    assert found(["cuda:1"], CUDA_DEVICE_ORDER="PCI_BUS_ID") is None
    assert found(["GPU-1"]) is None


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_no_visible_device_is_no_meter(visible: str) -> None:
    with pytest.raises(SensorError, match="nvml: no device"):
        handles(BOARDS, visible=visible)


@pytest.mark.parametrize(
    ("wanted", "visible", "why"),
    [
        (["cuda:4"], None, "cuda:4 is not among the 4 devices"),
        (["cuda:1"], "2", "cuda:1 is not among the 1 devices"),
        (["GPU-9"], None, "GPU-9 is no device"),
        (["GPU-"], None, "GPU- is several devices"),
    ],
)
def test_a_device_that_cannot_be_told_is_refused(
    wanted: list[str], visible: str | None, why: str
) -> None:
    with pytest.raises(SensorError, match=why):
        handles(BOARDS, wanted, visible=visible)


def test_a_driver_that_cannot_count_is_a_sensor_error() -> None:
    with pytest.raises(SensorError, match="nvml: uninitialised"):
        handles(Driver(count_error="uninitialised"))


@pytest.mark.parametrize("visible", ["MIG-aa", "MIG-ab,MIG-aa"])
def test_an_instance_is_found_by_its_uuid(visible: str) -> None:
    assert handles(SPLIT, visible=visible) == visible.split(",")


def test_an_instance_is_found_by_the_beginning_of_its_uuid() -> None:
    assert handles(Driver(energy_mj=[1], instances={"MIG-aa": 1}), visible="MIG-a") == ["MIG-aa"]


def test_an_instance_is_the_one_that_cuda_names() -> None:
    assert handles(SPLIT, ["cuda:0"], cuda=lambda: ("ab",), by_bus=False) == ["MIG-ab"]


@pytest.mark.parametrize("wanted", [None, ["cuda:0"], ["GPU-0-board"]])
def test_a_split_board_is_not_taken_for_one_of_its_instances(wanted: list[str] | None) -> None:
    with pytest.raises(SensorError, match=r"is split \(MIG\)"):
        handles(SPLIT, wanted, cuda=lambda: None)


def test_where_cuda_sees_nothing_there_is_no_meter() -> None:
    with pytest.raises(SensorError, match="cuda:0 is not among the 0 devices"):
        handles(BOARDS, ["cuda:0"], cuda=lambda: (), by_bus=False)
