"""A hub model brings the files that are read, and no second copy of its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils._paths import filter_repo_objects

from greenllm.model.files import (
    Weights,
    check_folder,
    eos_ids,
    local_folder,
    read_json,
    weight_files,
)
from greenllm.model.info import LoadError

SMALL = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "merges.txt",
    "chat_template.jinja",
    "README.md",
}
NOT_READ = {
    "consolidated.safetensors",
    "consolidated.00.pth",
    "original/params.json",
    "original/consolidated.00.pth",
    "original/tokenizer.model",
    "onnx/config.json",
    "model.fp16.safetensors",
    "pytorch_model.bin",
    "USE_POLICY.md",
    "figure.png",
}
INDEX = "model.safetensors.index.json"
SHARDS = {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
Hub = Callable[[set[str]], set[str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """What arrives of a repository with these files."""

    def fetch(files: set[str]) -> set[str]:
        def snapshot_download(source: str, **filters: Any) -> str:
            assert source == "owner/name"
            for name in filter_repo_objects(files, **filters):
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                shards = dict(zip("ab", sorted(SHARDS), strict=True))
                path.write_text(json.dumps({"weight_map": shards}) if name == INDEX else "")
            return str(tmp_path)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        folder = local_folder("owner/name")
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix() for path in found}

    return fetch


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ({"model.safetensors"}, {"model.safetensors"}),
        ({INDEX, *SHARDS}, {INDEX, *SHARDS}),
        ({"model.safetensors", INDEX, *SHARDS}, {"model.safetensors", INDEX}),
        (set(), set()),
    ],
    ids=["one file", "shards", "both", "pickles only"],
)
def test_one_checkpoint_arrives(offered: set[str], taken: set[str], hub: Hub) -> None:
    assert hub(SMALL | NOT_READ | offered) == SMALL | taken


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_a_pipe_is_no_part_of_a_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    check_folder(str(tmp_path), allow_pickle=False)
    os.mkfifo(tmp_path / name)
    with pytest.raises(LoadError, match=f"{name} is no regular file"):
        check_folder(str(tmp_path), allow_pickle=False)


def test_settings_without_end_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(LoadError, match=r"config.json is larger than 134217728 bytes"):
        check_folder(str(tmp_path), allow_pickle=False)
    with pytest.raises(LoadError, match="larger than 134217728 bytes"):
        read_json(tmp_path, "config.json")


def test_settings_without_bottom_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(LoadError, match="not valid JSON"):
        read_json(tmp_path, "config.json")


def test_an_index_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(LoadError, match="names files in other folders"):
        weight_files(tmp_path)


def test_a_header_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((2**26).to_bytes(8, "little"))
        file.truncate(2**27)
    with pytest.raises(LoadError, match="its header has 67108864 bytes"):
        Weights(tmp_path)


@pytest.mark.parametrize("index", [{"weight_map": ["a"]}, {"weight_map": {"a": 1}}])
def test_an_index_that_names_no_files(index: Any, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(LoadError, match="names no files"):
        weight_files(tmp_path)


def test_end_tokens_come_from_the_first_that_names_any() -> None:
    assert eos_ids({"eos_token_id": [3, 4]}, {"eos_token_id": 2}) == frozenset({3, 4})
    assert eos_ids({"eos_token_id": None}, {"eos_token_id": 0}) == frozenset({0})
    assert eos_ids({}, {}) == frozenset()
