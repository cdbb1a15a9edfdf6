"""Answers, streams, errors, receipts, metrics, routes and parameters are the golden files'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.shapes import GOLDEN, assert_golden, texts_of

if TYPE_CHECKING:
    from tests.api.conftest import App


@pytest.fixture(scope="module")
def texts(server: App) -> dict[str, str]:
    return texts_of(server)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir()))
def test_the_format_is_that_of_the_golden_files(texts: dict[str, str], name: str) -> None:
    assert_golden(name, texts[name])
