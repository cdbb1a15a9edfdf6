"""`greenllm card` on files: every form, and what is refused in one sentence."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from greenllm.cli.app import app
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.scorecard.schema import card_schema
from tests.unit.scorecard.samples import compressed, evaluated, finetuned


def run(*arguments: str) -> str:
    """Output of a call that succeeds."""
    result = CliRunner().invoke(app, ["card", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture
def reports(tmp_path: Path) -> dict[str, str]:
    """A file of each kind."""
    made = {"finetune": finetuned(), "evaluation": evaluated(), "compression": compressed()}
    for name, document in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return {name: str(tmp_path / f"{name}.json") for name in made}


@pytest.mark.parametrize("kind", ["finetune", "evaluation", "compression"])
def test_every_form_of_all_kinds(reports: dict[str, str], kind: str) -> None:
    file = reports[kind]
    found = json.loads(run(file))
    Draft202012Validator(card_schema()).validate(found)
    assert found["identity"]["what"] == {"finetune": "fine-tuning"}.get(kind, kind)
    spdx = json.loads(run(file, "--format", "spdx"))
    assert spdx["@graph"][0]["specVersion"] == "3.0.1"
    table = list(csv.DictReader(StringIO(run(file, "--format", "csv"))))
    assert float(table[0]["energy_j"]) == found["energy"]["total_j"]
    metadata = vars(ModelCard(run(file, "--format", "hf") + "\n").data)
    if kind == "evaluation":
        assert "co2_eq_emissions" not in metadata
    else:
        grams = metadata["co2_eq_emissions"]["emissions"]
        assert grams == pytest.approx(found["carbon"]["operational_g"])


def test_a_file_is_written_instead(reports: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "card.csv"
    assert run(reports["evaluation"], "--format", "csv", "--output", str(out)) == ""
    assert out.read_text(encoding="utf-8") == run(reports["evaluation"], "--format", "csv")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read .*report.json: No such file"),
        (b"{", "report.json is no JSON"),
        (b"\xff\xfe", "report.json is no JSON"),
        (b"[1]", "report.json holds no JSON object"),
        (b"{}", "report.json: it is none of the green_report.json"),
        (
            b'{"tasks": {}, "energy": {}, "schema": 9}',
            "report.json: its schema is 9.*upgrade greenllm",
        ),
    ],
)
def test_files_that_hold_no_report_are_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        CliRunner().invoke(app, ["card", str(path)], catch_exceptions=False)


def test_other_forms_places_and_figures_are_refused(
    reports: dict[str, str], tmp_path: Path
) -> None:
    def call(*arguments: str) -> None:
        CliRunner().invoke(app, ["card", *arguments], catch_exceptions=False)

    with pytest.raises(ConfigError, match="--format must be one of json, hf, spdx, csv, not 'xml'"):
        call(reports["finetune"], "--format", "xml")
    with pytest.raises(GreenllmError, match="cannot write"):
        call(reports["finetune"], "--output", str(tmp_path))
    document = finetuned()
    document["measures"]["power_w"] = -1.0
    (tmp_path / "wrong.json").write_text(json.dumps(document), encoding="utf-8")
    for form in ("json", "hf", "spdx", "csv"):
        with pytest.raises(
            GreenllmError, match=r"wrong\.json: no valid score card: card\.power_w.*make it again"
        ):
            call(str(tmp_path / "wrong.json"), "--format", form)
