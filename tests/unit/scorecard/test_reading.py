"""Cards say what the reports say; what those do not say is unknown, and never zero."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.basis import Basis, together
from evals.evaluation_report import markdown
from evals.served import QueryCost, cost_of, total
from greenllm.config import ConfigError
from greenllm.energy.carbon.footprint import EmbodiedModel
from greenllm.energy.units import plain_decimal
from greenllm.scorecard.card import wh_per_1000_requests
from greenllm.scorecard.reading import card_of, card_of_evaluation, card_of_finetune
from greenllm.scorecard.schema import card_object
from tests.unit.scorecard.samples import BASIS, compressed, evaluated, finetuned

UNKNOWN = QueryCost(None, None, None, 10, 5)


def test_a_fine_tunes_measures_are_those_of_its_report() -> None:
    report = finetuned(embodied=EmbodiedModel(1000.0, 1000.0, 1000.0, 12000.0, "a table"))
    card, measures = card_of_finetune(report), report["measures"]
    assert (card.running_time_s, card.energy.total_j) == (120.0, 5400.0)
    assert card.power_w == pytest.approx(45.0)
    assert (card.model.parameters, card.model.trained, card.model.written_bytes) == (5000, 100, 400)
    assert card.flops.value == 4 * 5000 * 1000
    assert card.energy.joules_per_token == pytest.approx(3.6)
    assert card.energy.wh_per_1000_requests is None
    assert [part.name for part in card.energy.parts] == ["loading", "training", "compare"]
    # 1.5 Wh at a PUE of 1.2 and 360 g/kWh; 1 % of the hardware's life.
    assert card.carbon.operational_g == pytest.approx(1.5e-3 * 1.2 * 360)
    assert card.carbon.embodied_g == pytest.approx(10.0)
    assert card.carbon.total_g == pytest.approx(measures["carbon"]["total_g"])
    assert (card.carbon.intensity_zone, card.carbon.pue) == ("FRA", 1.2)
    assert (card.carbon.intensity_source, card.carbon.intensity_year) == ("a table", 2025)
    assert (card.identity.what, card.identity.method) == ("fine-tuning", "lora")


def test_what_the_flops_of_a_fine_tune_leave_out_is_said() -> None:
    card = card_of_finetune(finetuned())
    (note,) = [note for note in card.notes if "FLOPs" in note]
    for text in (note, card.flops.method or ""):
        assert all(word in text for word in ("trained on", "trials", "evaluation", "attention"))


def test_a_fine_tunes_quality_is_that_after_it_with_that_before() -> None:
    card = card_of_finetune(finetuned(loss=1.25))
    by_name = {one.name: one for one in card.quality}
    assert list(by_name) == ["validation_loss", "exact_match", "probe_loss", "exit_2"]
    loss, exact = by_name["validation_loss"], by_name["exact_match"]
    assert (loss.value, loss.examples, loss.measure) == (1.25, 2, "nats per token")
    assert loss.before is not None
    assert loss.before.value == 2.5
    assert (exact.value, exact.measure) == (0.75, "accuracy")
    assert exact.low is not None
    assert exact.low < 0.75


def test_a_loss_that_is_not_a_number_is_unknown() -> None:
    (loss, *_) = card_of_finetune(finetuned(loss=float("nan"))).quality
    assert (loss.name, loss.value) == ("validation_loss", None)


def test_an_evaluations_sums_are_those_of_its_tasks() -> None:
    card = card_of_evaluation(evaluated())
    assert card.running_time_s == 20.0
    assert card.energy.total_j == pytest.approx(6 * 7.2)
    assert card.power_w == pytest.approx(6 * 7.2 / 20)
    assert card.energy.joules_per_token == pytest.approx(7.2 / 15)
    assert card.flops.value == 6e9
    assert (card.carbon.operational_g, card.carbon.embodied_g) == (3.0, 1.5)
    assert (card.carbon.total_g, card.carbon.intensity_zone) == (4.5, "FRA")
    assert card.carbon.intensity_year is None
    assert card.model.parameters is None
    quiz, book = card.quality
    assert (quiz.value, quiz.chance, quiz.examples) == (0.5, 0.25, 4)
    assert (book.value, book.measure, book.chance) == (2.0, "bits per byte", None)
    assert card.energy.measured is False


def test_watt_hours_are_of_a_thousand_answered_requests() -> None:
    # 7.2 J are 2 mWh, so a thousand requests are 2 Wh; the refused ones cost nothing and are none.
    found = evaluated(refused=1)
    card = card_of_evaluation(found)
    assert [part.requests for part in card.energy.parts] == [3, 2]
    assert [part.wh_per_1000_requests for part in card.energy.parts] == pytest.approx([2.0, 2.0])
    assert card.energy.wh_per_1000_requests == pytest.approx(2.0)
    assert found["tasks"]["quiz"]["wh_per_1000_requests"] == pytest.approx(2.0)
    assert found["basis"]["wh_per_1000_requests"] == pytest.approx(2.0)
    assert wh_per_1000_requests(36.0, 10) == pytest.approx(1.0)
    assert wh_per_1000_requests(None, 10) is None
    assert wh_per_1000_requests(1.0, 0) is None


def test_the_evaluations_page_has_them_and_dashes_where_they_are_unknown() -> None:
    known, unknown = markdown(evaluated()), markdown(evaluated(UNKNOWN))
    assert "| Wh per 1,000 requests |" in known
    (row,) = [line for line in known.splitlines() if line.startswith("| quiz |")]
    assert row.endswith("| 2 |")
    assert "All tasks together: 2 Wh per 1,000 requests." in known
    (row,) = [line for line in unknown.splitlines() if line.startswith("| quiz |")]
    assert row.endswith("| - |")
    assert "All tasks together: - Wh" in unknown


def test_an_older_evaluation_without_basis_and_identity_is_read() -> None:
    found = evaluated()
    del found["basis"], found["identity"]
    for task in found["tasks"].values():
        del task["wh_per_1000_requests"]
    card = card_of(found)
    assert card.energy.wh_per_1000_requests == pytest.approx(2.0)
    assert (card.carbon.total_g, card.carbon.pue, card.flops.value) == (None, None, None)
    assert (card.identity.command, card.identity.began, card.identity.versions) == (None,) * 3


def test_keys_do_not_get_into_the_command() -> None:
    command = card_of(evaluated()).identity.command
    assert command is not None
    assert "secret" not in command
    assert "a b" not in command
    assert command == "greenllm eval generated --api-key '***' --serve '--api-keys *** --port 1'"


def test_what_the_server_says_is_carried_and_added_up() -> None:
    energy = {
        "energy_joules": 1.0, "operational_gco2e": 0.5, "embodied_gco2e": None, "flops": 10.0,
        "uncertainty": 0.4, "carbon_intensity_g_per_kwh": 360.0, "carbon_intensity_zone": "FRA",
        "carbon_intensity_source": "a table", "pue": 1.1,
    }  # fmt: skip
    one = cost_of({"usage": {"energy": energy}})
    assert one.grams is None, "what the hardware adds is unknown, and so is the sum"
    whole = cost_of({"usage": {"energy": {**energy, "embodied_gco2e": 0.25}}})
    assert (whole.grams, total([whole, one]).grams) == (0.75, None)
    assert cost_of({"usage": {"energy": {"embodied_gco2e": 0.25}}}).grams is None
    found = total([one] * 2).basis
    assert found == Basis(1.0, None, 20.0, 0.4, 360.0, "FRA", "a table", 1.1)
    assert found.as_dict()["total_g"] is None
    assert cost_of({}).basis == Basis()
    assert together([]) == Basis()
    other = Basis(1.0, 1.0, 1.0, 0.42, 100.0, "FRA", "a table", 1.0)
    assert together([BASIS, other]).intensity_g_per_kwh is None
    assert together([BASIS, other]).intensity_zone == "FRA"


@given(
    tokens=st.integers(0, 10**6),
    intensity=st.floats(0, 2000),
    refused=st.integers(0, 3),
)
def test_unknown_joules_are_unknown_everywhere(tokens: int, intensity: float, refused: int) -> None:
    basis = Basis(intensity_g_per_kwh=intensity, intensity_zone="FRA", pue=1.0)
    cost = QueryCost(None, None, None, tokens, 1, None, None, basis)
    asked = card_of(evaluated(cost, refused=refused))
    trained = card_of(finetuned(training_j=None))
    for card in (asked, trained):
        energy, carbon = card.energy, card.carbon
        assert (energy.total_j, energy.joules_per_token, energy.uncertainty) == (None, None, None)
        assert (energy.wh_per_1000_requests, card.power_w) == (None, None)
        assert (carbon.operational_g, carbon.embodied_g, carbon.total_g) == (None, None, None)
        assert all(part.energy_j is None for part in energy.parts)
        assert all(part.wh_per_1000_requests is None for part in energy.parts)


def test_one_unknown_task_makes_the_sum_unknown() -> None:
    found = evaluated()
    found["tasks"]["book"]["energy_j"] = None
    card = card_of(found)
    assert card.energy.parts[0].energy_j == pytest.approx(4 * 7.2)
    assert (card.energy.total_j, card.energy.wh_per_1000_requests) == (None, None)
    assert card.energy.uncertainty is None


def test_no_tasks_are_no_zero() -> None:
    card = card_of({**evaluated(), "tasks": {}})
    assert (card.energy.total_j, card.running_time_s, card.energy.tokens) == (None, None, None)
    assert card.power_w is None


def spoilt(document: dict[str, Any], value: Any, *names: str) -> dict[str, Any]:
    inner = document
    for name in names[:-1]:
        inner = inner[name]
    inner[names[-1]] = value
    return document


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "none of the green_report.json"),
        ({"measures": {}, "energy": {}}, "none of the green_report.json"),
        (
            spoilt(finetuned(), 2, "schema"),
            "its schema is 2.*upgrade greenllm, or make the report again",
        ),
        (spoilt(evaluated(), None, "schema"), "its schema is None"),
        (spoilt(finetuned(), [], "measures", "energy"), "'energy' is \\[\\], not an object"),
        (spoilt(finetuned(), None, "measures", "carbon"), "'carbon' is missing"),
        (
            spoilt(finetuned(), "5", "measures", "power_w"),
            "power_w is '5': Input should be a valid number",
        ),
        (
            spoilt(finetuned(), True, "measures", "power_w"),
            "power_w is True: Input should be a valid number",
        ),
        (
            spoilt(finetuned(), 1.5, "training", "tokens"),
            "tokens is 1.5: Input should be a valid integer",
        ),
        (
            spoilt(finetuned(), None, "recipe", "model"),
            "model is None: Input should be a valid string",
        ),
        (
            spoilt(finetuned(), 3, "identity", "machine"),
            "machine is 3: Input should be a valid string",
        ),
        (spoilt(evaluated(), "x", "energy", "methods"), "'methods' is 'x', not a list of texts"),
        (
            spoilt(evaluated(), 1, "energy", "measured"),
            "measured is 1: Input should be a valid boolean",
        ),
        (spoilt(evaluated(), 1, "tasks", "quiz"), "'quiz' is 1, not an object"),
    ],
)
def test_what_is_no_report_is_refused(document: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        card_of(document)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2.05e-5, "0.0000205"), (1e21, "1000000000000000000000"), (1200.0, "1200"),
     (0.1234567891, "0.123457"), (-1.5, "-1.5"), (5e-324, "0." + "0" * 323 + "5")],
)  # fmt: skip
def test_plain_decimals_have_no_exponent(value: float, text: str) -> None:
    assert plain_decimal(value) == text


def test_what_has_no_decimals_is_refused() -> None:
    with pytest.raises(ValueError, match="no decimals"):
        plain_decimal(float("nan"))


def test_a_compression_has_a_card_too() -> None:
    card = card_of(compressed(100.0))
    assert card_object(card)["identity"]["what"] == "compression"
    assert (card.energy.total_j, card.power_w, card.model.parameters) == (100.0, 5.0, 700)
    (quality,) = card.quality
    assert quality.before is not None
    assert (quality.before.value, quality.value) == (0.9, 0.88)
    unknown = card_of(compressed(None))
    assert card_object(unknown)["energy"]["total_j"] is None
    assert unknown.power_w is None
    assert [part.energy_j for part in unknown.energy.parts] == [None, None]


def test_a_compressions_grams_are_those_of_its_electricity() -> None:
    carbon = card_of(compressed(3.6e5)).carbon
    assert carbon.operational_g == pytest.approx(0.1 * 360)
    assert (carbon.embodied_g, carbon.total_g) == (None, None)
    assert (carbon.intensity_g_per_kwh, carbon.intensity_zone, carbon.pue) == (360.0, "FRA", 1.0)
    assert (carbon.intensity_source, carbon.intensity_year) == ("a table", 2025)


@pytest.mark.parametrize("name", ["joules", "older"])
def test_a_compression_without_grams_has_none(name: str) -> None:
    report = compressed(None if name == "joules" else 100.0)
    if name == "older":
        del report["carbon"]
    assert set(asdict(card_of(report).carbon).values()) == {None}
