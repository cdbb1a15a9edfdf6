"""Grams need a named source; what is unknown stays unknown."""

from dataclasses import replace

import pytest

from greenllm.config import ConfigError
from greenllm.energy.carbon import policy
from greenllm.energy.carbon.footprint import EmbodiedModel
from greenllm.energy.carbon.grid import Intensity, StaticIntensity
from greenllm.energy.carbon.policy import (
    CarbonPolicy,
    carbon_policy,
    embodied_of,
    intensity_source,
    world_warning,
)
from greenllm.energy.meters.limits import CpuShare
from greenllm.options import CarbonOptions
from tests.unit.energy.rig import make_receipt

SOURCE = StaticIntensity(Intensity(360.0, "XXX", "Nowhere", 2025, "a source", "CC BY 4.0"))
HARDWARE = EmbodiedModel(1000.0, 500.0, 2000.0, 100.0, "a source")


class Hourly:
    """An intensity that is the time asked for."""

    def intensity(self, at_s: float) -> Intensity:
        return Intensity(at_s, "XXX", "Nowhere", None, "a clock", "none")


def test_grams_are_joules_times_pue_times_intensity() -> None:
    receipt = CarbonPolicy(SOURCE, 1.5).apply(make_receipt(active_j=8000.0, idle_j=2000.0))
    assert receipt.operational_g == pytest.approx(10_000 * 1.5 * 360 / 3.6e6)
    assert (receipt.embodied_g, receipt.gco2e) == (None, None)
    assert (receipt.intensity_g_per_kwh, receipt.intensity_zone) == (360.0, "XXX")
    assert (receipt.intensity_source, receipt.intensity_year) == ("a source", 2025)
    assert receipt.pue == 1.5


def test_joules_are_it_energy_and_stay_as_they_are() -> None:
    before = make_receipt()
    after = CarbonPolicy(SOURCE, 2.0).apply(before)
    assert (after.active_j, after.idle_j, after.total_j) == (2.0, 1.0, 3.0)
    without_grams = replace(
        after,
        operational_g=None,
        intensity_g_per_kwh=None,
        intensity_zone=None,
        intensity_source=None,
        intensity_year=None,
        pue=None,
    )
    assert without_grams == before


def test_embodied_grams_follow_the_share_of_the_machines_time() -> None:
    policy = CarbonPolicy(SOURCE, embodied=HARDWARE)
    receipt = policy.apply(make_receipt(resident_s=2.0, duration_s=50.0))
    assert receipt.embodied_g == pytest.approx(1000.0 * 2.0 / 100.0)
    assert receipt.operational_g is not None
    assert receipt.gco2e == pytest.approx(receipt.operational_g + 20.0)


def test_the_intensity_is_that_of_the_time_the_request_came() -> None:
    assert CarbonPolicy(Hourly()).apply(make_receipt(created_s=123.0)).intensity_g_per_kwh == 123.0


@pytest.mark.parametrize("source", [None, SOURCE])
def test_without_joules_or_without_a_source_there_are_no_grams(
    source: StaticIntensity | None,
) -> None:
    known = make_receipt() if source is None else make_receipt(active_j=None, idle_j=None)
    receipt = CarbonPolicy(source, 1.5, HARDWARE).apply(known)
    assert receipt == known
    assert receipt.gco2e is None


def test_the_intensity_is_that_of_the_zone_or_ones_own() -> None:
    policy = carbon_policy(CarbonOptions(zone="France", pue=1.3), HARDWARE)
    assert policy.source is not None
    assert (policy.source.intensity(0.0).zone, policy.pue) == ("FRA", 1.3)
    assert policy.embodied is HARDWARE
    own = CarbonOptions(intensity_g_per_kwh=20.0, intensity_source="supplier")
    found = intensity_source(own).intensity(0.0)
    assert (found.g_per_kwh, found.source) == (20.0, "supplier")


def test_an_unknown_zone_is_the_options_fault() -> None:
    with pytest.raises(ConfigError, match="--zone Atlantis: no carbon intensity") as caught:
        carbon_policy(CarbonOptions(zone="Atlantis"))
    assert caught.value.option == "zone"


@pytest.mark.parametrize(
    ("device", "has_cuda", "is_known"),
    [
        ("cpu", False, True),
        ("cpu", True, True),
        ("auto", False, True),
        ("auto", True, False),
        ("cuda:1", True, False),
    ],
)
def test_manufacture_is_known_of_cpus_only(device: str, has_cuda: bool, is_known: bool) -> None:
    assert (embodied_of(device, has_cuda=has_cuda) is not None) == is_known


def test_manufacture_is_that_of_the_cpus_in_use() -> None:
    one, three = (embodied_of("cpu", has_cuda=False, num_cpus=count) for count in (1, 3))
    assert one is not None
    assert three is not None
    assert three.grams(3600.0) == pytest.approx(3 * one.grams(3600.0))


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        (CarbonOptions(), True),
        (CarbonOptions(zone="world"), True),
        (CarbonOptions(zone="FRA"), False),
        (CarbonOptions(intensity_g_per_kwh=20.0, intensity_source="a contract"), False),
    ],
)
def test_grams_at_the_worlds_average_come_with_a_warning(
    options: CarbonOptions, warns: bool
) -> None:
    warning = world_warning(options)
    assert (warning is not None) == warns
    if warning is not None:
        assert "458 g/kWh; grids have 20 to 1306: name yours with --zone" in warning


def test_a_part_of_a_machine_pays_for_that_part(monkeypatch: pytest.MonkeyPatch) -> None:
    share = CpuShare(1.5, "quota", lambda: None)
    monkeypatch.setattr(policy, "cpu_share", lambda num_vcpus: share)
    part = embodied_of("cpu", has_cuda=False)
    assert part is not None
    assert part.total_g == pytest.approx(EmbodiedModel.per_vcpu(1.5).total_g)


def test_an_unknown_zone_is_told_before_any_warning() -> None:
    with pytest.raises(ConfigError, match="--zone Atlantis"):
        world_warning(CarbonOptions(zone="Atlantis"))
