"""The wheel holds the four packages with their data, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("greenllm", "serving", "finetune", "evals")
UNSHIPPED = [ROOT / "evals" / name for name in ("chaos", "soak", "studies")]
BUNDLED = ("greenllm/model/bundled", "greenllm/model/bundled_draft")


def build(folder: Path) -> str:
    """Build a wheel into a folder; returns what went wrong, or nothing."""
    if importlib.util.find_spec("hatchling"):
        code = f"import hatchling.build; hatchling.build.build_wheel({str(folder)!r})"
        command = ["-c", code]
    else:
        command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder)]
        command.append(str(ROOT))
    run = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    return "" if run.returncode == 0 else run.stdout + run.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    problem = build(folder)
    if problem and "No module named" in problem and "hatchling" in problem:
        pytest.skip(f"no build backend here: {problem.splitlines()[-1]}")
    assert not problem
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_top_level_is_the_four_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    (info,) = tops - set(PACKAGES)
    assert info.startswith("greenllm-")
    assert info.endswith(".dist-info")
    assert tops - {info} == set(PACKAGES)


def test_every_source_file_is_in(wheel: zipfile.ZipFile) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not any(folder in path.parents for folder in UNSHIPPED)
    }
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == sources
    assert len(packed) > 50


def test_types_and_tables_are_in(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    tables = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "greenllm/energy/data").glob("*.csv")
    }
    assert "greenllm/energy/data/intensity.csv" in tables
    assert tables <= names
    assert "greenllm/py.typed" in names


@pytest.mark.parametrize("folder", BUNDLED)
def test_the_bundled_models_are_in(wheel: zipfile.ZipFile, folder: str) -> None:
    names = set(wheel.namelist())
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert f"{folder}/{name}" in names
    weights = wheel.getinfo(f"{folder}/model.safetensors")
    assert weights.file_size == (ROOT / folder / "model.safetensors").stat().st_size > 1_000_000


def test_tests_and_leftovers_are_not_in(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        parts = name.split("/")
        assert "tests" not in parts, name
        assert not {"chaos", "soak", "studies"} & set(parts), name
        assert "__pycache__" not in parts, name
        assert not parts[-1].startswith(("test_", "conftest", ".")), name
        assert not name.endswith((".pyc", ".sqlite", ".whl")), name


def test_the_metadata_has_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info" in name}
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "greenllm = greenllm.__main__:main" in entry_points
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "Name: greenllm\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert "Classifier: Private :: Do Not Upload\n" in metadata


def test_the_lock_has_a_hash_for_every_package_and_the_versions_of_the_constraints() -> None:
    locked = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    packages = [line.split() for line in locked if line and not line.lstrip().startswith("#")]
    assert all(any(word.startswith("--hash=sha256:") for word in words) for words in packages)
    pinned = dict(
        line.partition("==")[::2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    versions = dict(words[0].partition("==")[::2] for words in packages)
    assert versions.keys() >= {"fastapi", "torch", "transformers"}
    both = {name: version for name, version in versions.items() if name in pinned}
    assert both == {name: pinned[name] for name in both}
    assert len(both) > 50
