"""The hub is asked once, and who cannot reach it is told at once. Nothing here uses the network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from greenllm.model.files import check_folder
from greenllm.model.hub import require_on_hub
from greenllm.model.info import LoadError

Answer = Callable[..., Mock]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Answer]:
    """Sets what the hub answers; its cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    require_on_hub.cache_clear()

    def answer(error: Exception | None = None) -> Mock:
        asked = Mock(side_effect=error)
        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", asked)
        return asked

    yield answer
    require_on_hub.cache_clear()


def test_the_hub_is_asked_once(hub: Answer) -> None:
    asked = hub()
    for _ in range(3):
        check_folder("owner/name", allow_pickle=False)
    assert asked.call_count == 1
    assert asked.call_args.args == ("https://huggingface.co/owner/name/resolve/main/config.json",)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RepositoryNotFoundError("no", response=Mock()), "the hub has no owner/name; if it is pri"),
        (GatedRepoError("no", response=Mock()), "accept its terms there"),
        (RemoteEntryNotFoundError("no", response=Mock()), "has no config.json: not a model"),
        (HFValidationError("no"), "'owner/name' is no folder, and no hub id"),
        (
            OSError("Name or service\nnot known"),
            "(Name or service not known), and it was not downl",
        ),
    ],
)
def test_refusals_are_one_sentence(hub: Answer, error: Exception, said: str) -> None:
    hub(error)
    with pytest.raises(LoadError) as caught:
        check_folder("owner/name", allow_pickle=False)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_what_was_downloaded_is_used(
    hub: Answer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub(OSError("no route to host"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "/cache/config.json")
    with caplog.at_level(logging.WARNING):
        check_folder("owner/name", allow_pickle=False)
        check_folder("owner/name", allow_pickle=False)
    (record,) = caplog.records
    assert "huggingface.co cannot be reached (no route to host)" in record.message
    assert constants.HF_HUB_OFFLINE  # nothing else waits for it


def test_a_hub_id_of_gguf_files_says_so(hub: Answer) -> None:
    hub(RemoteEntryNotFoundError("no", response=Mock()))
    with pytest.raises(LoadError, match=r"has no config\.json: GGUF files are not read"):
        check_folder("owner/name-GGUF", allow_pickle=False)


@pytest.mark.parametrize("name", ["", "model.gguf", "MODEL.GGUF"])
@pytest.mark.parametrize("has_config", [False, True])
def test_gguf_files_are_refused_with_what_to_do(
    hub: Answer, tmp_path: Path, name: str, has_config: bool
) -> None:
    (tmp_path / "model.gguf").touch()
    if has_config:
        (tmp_path / "config.json").write_text("{}")
    asked = hub()
    with pytest.raises(LoadError, match="GGUF files are not read; take the checkpoint"):
        check_folder(str(tmp_path / name), allow_pickle=True)
    assert not asked.called


def test_gguf_files_beside_a_checkpoint_do_no_harm(tmp_path: Path) -> None:
    for name in ("model.gguf", "model.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "config.json").write_text("{}")
    check_folder(str(tmp_path), allow_pickle=False)


def test_a_file_below_a_folder_is_no_hub_id(
    hub: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights").touch()
    asked = hub()
    with pytest.raises(LoadError, match="no folder models/weights"):
        check_folder("models/weights", allow_pickle=False)
    assert not asked.called


def test_folders_are_not_asked_for(hub: Answer, tmp_path: Path) -> None:
    asked = hub()
    (tmp_path / "config.json").write_text("{}")
    check_folder(str(tmp_path), allow_pickle=False)
    assert not asked.called
