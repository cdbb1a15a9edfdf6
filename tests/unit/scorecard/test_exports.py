"""The card in the forms of others: golden files, and that readers of theirs find what is in it.

After an intended change, run this file once with UPDATE_GOLDEN=1 and read the difference.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from evals.served import QueryCost
from finetune.bill.pages import card as readme
from greenllm.cli.card import FORMATS, shown
from greenllm.energy.carbon.footprint import EmbodiedModel
from greenllm.scorecard.card import Card
from greenllm.scorecard.huggingface import front_matter
from greenllm.scorecard.reading import card_of
from greenllm.scorecard.spdx import spdx_document
from greenllm.scorecard.table import csv_table
from tests.unit.scorecard.samples import (
    FOLDER,
    MACHINE,
    MOMENT,
    compressed,
    evaluated,
    finetuned,
)

EMBODIED = EmbodiedModel(1000.0, 1000.0, 1000.0, 12000.0, "a table")
CARDS = {
    "finetune": card_of(finetuned(embodied=EMBODIED)),
    "evaluation": card_of(evaluated(refused=1)),
    "compression": card_of(compressed()),
}
UNKNOWN = {
    "finetune": card_of(finetuned(training_j=None)),
    "evaluation": card_of(evaluated(QueryCost(None, None, None, 10, 5))),
    "compression": card_of(compressed(None)),
}
SUFFIXES = {"json": "json", "hf": "md", "spdx": "spdx.json", "csv": "csv"}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", CARDS)
def test_golden(kind: str, form: str) -> None:
    path = FOLDER / f"{kind}.{SUFFIXES[form]}"
    text = shown(CARDS[kind], form, MOMENT)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def metadata(card: Card) -> Any:
    """What the hub's own library reads."""
    return ModelCard(front_matter(card) + "\n# A model\n").data


def test_the_hub_reads_emissions_and_results_of_a_fine_tune() -> None:
    card = CARDS["finetune"]
    found = metadata(card)
    carbon = found.to_dict()["co2_eq_emissions"]
    assert carbon["emissions"] == pytest.approx(card.carbon.operational_g)
    assert carbon["training_type"] == "fine-tuning"
    assert (carbon["geographical_location"], carbon["hardware_used"]) == ("FRA", MACHINE)
    assert (found.base_model, found.library_name) == ("base", "peft")
    figures = {one.metric_name: one.metric_value for one in found.eval_results}
    assert figures["exact_match, accuracy"] == 0.75
    assert len(figures) == 4


def test_the_hub_reads_no_emissions_of_an_evaluation() -> None:
    found = metadata(CARDS["evaluation"]).to_dict()
    assert CARDS["evaluation"].carbon.operational_g == 2.5
    assert "co2_eq_emissions" not in found, "the Hub's are those of making the model"
    assert "base_model" not in found
    (name,) = [one["name"] for one in found["model-index"]]
    assert name == "bundled"


def test_the_hub_reads_a_compression_under_a_name_of_its_own() -> None:
    card = CARDS["compression"]
    found = metadata(card).to_dict()
    assert (found["base_model"], found["library_name"]) == ("big", "transformers")
    (index,) = found["model-index"]
    assert index["name"] == package(card)["name"] == "big, compression with prune"
    assert index["results"][0]["metrics"][0]["value"] == 0.88
    carbon = found["co2_eq_emissions"]
    assert carbon["emissions"] == pytest.approx(card.carbon.operational_g)
    assert carbon["source"] == "greenllm, compression: modelled:x joules x a table"
    nameless = replace(card, identity=replace(card.identity, method=None))
    assert metadata(nameless).to_dict()["model-index"][0]["name"] == "big, compression"


@pytest.mark.parametrize(
    ("method", "healed", "kind"),
    [
        ("prune", True, "fine-tuning"),
        ("prune", False, None),
        ("student", True, None),
    ],
)
def test_only_healing_is_fine_tuning(method: str, healed: bool, kind: str | None) -> None:
    card = card_of(compressed(method=method, healed=healed))
    assert metadata(card).to_dict()["co2_eq_emissions"].get("training_type") == kind


def test_a_full_fine_tune_is_a_model_of_its_own() -> None:
    assert metadata(card_of(finetuned(method="full"))).library_name == "transformers"


def test_unknown_places_and_machines_are_left_out() -> None:
    card = CARDS["finetune"]
    card = replace(
        card,
        identity=replace(card.identity, machine=None),
        carbon=replace(card.carbon, intensity_zone=None, intensity_source=None),
    )
    found = metadata(card).to_dict()["co2_eq_emissions"]
    assert sorted(found) == ["emissions", "source", "training_type"]
    assert "unknown intensity" in found["source"]


@given(name=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1))
def test_names_survive_quoting(name: str) -> None:
    card = CARDS["evaluation"]
    card = replace(card, identity=replace(card.identity, model=name))
    assert metadata(card).to_dict()["model-index"][0]["name"] == name


@given(grams=st.floats(1e-12, 1e9))
def test_emissions_are_the_grams(grams: float) -> None:
    card = CARDS["finetune"]
    card = replace(card, carbon=replace(card.carbon, operational_g=grams))
    assert metadata(card).to_dict()["co2_eq_emissions"]["emissions"] == grams


def test_the_readme_of_a_fine_tune_begins_with_the_same_metadata() -> None:
    report = finetuned(embodied=EMBODIED)
    page = readme(report)
    assert page.startswith(front_matter(card_of(report)))
    assert "\n# base, fine-tuned with lora\n" in page
    assert vars(ModelCard(page).data)["base_model"] == "base"


def test_the_readme_speaks_of_emissions_only_where_they_are_in_the_metadata() -> None:
    told = "The `emissions` above are the operational grams"
    assert told in readme(finetuned(embodied=EMBODIED))
    assert told in readme(finetuned())
    unknown = readme(finetuned(training_j=None))
    assert "emissions" not in unknown
    assert "(modelled) in " in unknown


def package(card: Card) -> dict[str, Any]:
    graph = spdx_document(card, MOMENT)["@graph"]
    (found,) = [one for one in graph if one["type"] == "ai_AIPackage"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("kind", "slot", "joules"),
    [
        ("finetune", "ai_finetuningEnergyConsumption", 5400.0),
        ("evaluation", "ai_inferenceEnergyConsumption", 5 * 7.2),
    ],
)
def test_spdx_has_the_kilowatt_hours_in_their_place(kind: str, slot: str, joules: float) -> None:
    energy = package(CARDS[kind])["ai_energyConsumption"]
    (amount,) = energy.pop(slot)
    assert energy == {"type": "ai_EnergyConsumption"}
    assert amount["ai_energyUnit"] == "kilowattHour"
    assert float(Decimal(amount["ai_energyQuantity"])) * 3.6e6 == pytest.approx(joules, rel=1e-5)


def test_spdx_has_a_compressions_joules_in_the_comment() -> None:
    found = package(CARDS["compression"])
    assert "ai_energyConsumption" not in found
    comment = found["comment"]
    assert comment.startswith("97.25 J of one compression: modelled, not measured (modelled:x).")
    assert "FLOPs are not counted" in comment
    assert package(UNKNOWN["compression"])["comment"].startswith(
        "Energy of one compression: unknown"
    )


def test_pre_training_has_a_place_of_its_own() -> None:
    card = CARDS["finetune"]
    trained = replace(card, identity=replace(card.identity, what="pre-training"))
    assert "ai_trainingEnergyConsumption" in package(trained)["ai_energyConsumption"]


def test_spdx_refers_only_to_what_is_in_it_and_another_card_has_another_name() -> None:
    graph = spdx_document(CARDS["finetune"], MOMENT)["@graph"]
    ids = {one.get("spdxId", one.get("@id")) for one in graph}
    info, _, document, model = graph
    assert {*info["createdBy"], *document["rootElement"], model["creationInfo"]} <= ids
    assert info["created"] == "2026-03-01T12:00:00Z"
    assert package(CARDS["evaluation"])["spdxId"] not in ids


def rows(card: Card) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(csv_table(card))))


def test_csv_has_a_row_for_each_figure_with_the_runs_measures() -> None:
    quiz, book = rows(CARDS["evaluation"])
    assert (quiz["quality"], quiz["value"], quiz["chance"]) == ("quiz", "0.5", "0.25")
    assert float(quiz["energy_j"]) == float(book["energy_j"]) == pytest.approx(5 * 7.2)
    assert float(quiz["own_energy_j"]) == pytest.approx(3 * 7.2)
    assert float(book["own_wh_per_1000_requests"]) == pytest.approx(2.0)
    assert (quiz["measured"], quiz["parameters"]) == ("false", "")
    assert (quiz["tokens_are"], quiz["intensity_source"], quiz["intensity_year"]) == (
        "tokens of prompts and answers", "a table", ""
    )  # fmt: skip
    loss, *_ = rows(CARDS["finetune"])
    assert (loss["tokens_are"], loss["intensity_source"], loss["intensity_year"]) == (
        "tokens trained on", "a table", "2025"
    )  # fmt: skip
    assert (loss["before"], loss["own_energy_j"], loss["parameters"]) == ("2.5", "", "5000")


def test_csv_of_a_run_without_figures_has_one_row() -> None:
    (row,) = rows(replace(CARDS["finetune"], quality=()))
    assert (row["energy_j"], row["quality"], row["value"]) == ("5400.0", "", "")


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_joules_are_in_no_form(kind: str) -> None:
    card = UNKNOWN[kind]
    assert "co2_eq_emissions" not in front_matter(card)
    assert "ai_energyConsumption" not in package(card)
    assert "unknown" in package(card)["comment"]
    for row in rows(card):
        names = ("energy_j", "joules_per_token", "wh_per_1000_requests", "power_w", "uncertainty",
                 "operational_g", "embodied_g", "total_g", "own_energy_j",
                 "own_wh_per_1000_requests")  # fmt: skip
        assert {row[name] for name in names} == {""}
    found = json.loads(shown(card, "json", MOMENT))
    assert {found["energy"][name] for name in ("total_j", "joules_per_token")} == {None}
    assert {found["carbon"][name] for name in ("operational_g", "total_g")} == {None}
