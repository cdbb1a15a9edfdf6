"""`greenllm card`: the score card of a run from the JSON that it wrote, in a form for others.

Contract: what is printed or written is checked against the published schema first, whatever the
form. Unknown stays unknown in all of them. Not covered: several files at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from greenllm.cli.report_export import writing
from greenllm.config import ConfigError
from greenllm.core import GreenllmError
from greenllm.given_files import MOST_JSON_BYTES, read_text
from greenllm.scorecard.card import Card
from greenllm.scorecard.huggingface import front_matter
from greenllm.scorecard.reading import card_of
from greenllm.scorecard.schema import card_object
from greenllm.scorecard.spdx import spdx_document
from greenllm.scorecard.table import csv_table

FORMATS = ("json", "hf", "spdx", "csv")


def card(
    file: Annotated[
        Path,
        typer.Argument(help="A run's green_report.json, evaluation.json or compression.json."),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="json, hf (Hugging Face metadata), spdx (SPDX 3.0.1 JSON-LD) or csv.",
        ),
    ] = "json",
    output: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Read a report and print its card, or write it.

    Raises:
        GreenllmError: the file, the form or the output will not do.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, not {form!r}")
    found = load(file)
    try:
        text = shown(found, form, datetime.now(UTC))
    except GreenllmError as error:
        raise GreenllmError(f"{file}: {error}") from error
    if output is None:
        print(text, end="")
        return
    with writing(output):
        output.write_text(text, encoding="utf-8")


def load(file: Path) -> Card:
    """The card of a file.

    Raises:
        ConfigError: it cannot be read, or is no report.
    """
    found = _object(file)
    try:
        return card_of(found)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def shown(card: Card, form: str, now: datetime) -> str:
    """The card in a form; `now` dates what has a date of its own.

    Raises:
        GreenllmError: the card does not conform to its schema.
    """
    found = card_object(card)
    if form == "hf":
        return front_matter(card)
    if form == "csv":
        return csv_table(card)
    return _json(spdx_document(card, now) if form == "spdx" else found)


def _json(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _object(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_text(file, MOST_JSON_BYTES))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds no JSON object, and so no report")
    return found
