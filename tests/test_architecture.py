"""What loads what, and who may name which library; the declared contracts are `make imports`."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("greenllm", "serving", "finetune", "evals")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter at the root of the repository."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


LIGHT = (
    "greenllm.core",
    "greenllm.text",
    "greenllm.config",
    "greenllm.options",
    "serving.config",
    "finetune.recipe",
    "evals.tuning.config",
    "greenllm.engine.blocks",
    "greenllm.engine.scheduler",
    "greenllm.energy.account.account",
    "greenllm.energy.ledger",
    "greenllm.energy.meters.choose",
    "greenllm.engine.loop",
    "greenllm.scorecard.reading",
    "greenllm.cli.app",
    "greenllm.vllm.schema",
)
HEAVY = (
    "torch",
    "pynvml",
    "transformers",
    "tokenizers",
    "numpy",
    "fastapi",
    "pydantic",
    "matplotlib",
)


def test_thinking_loads_neither_torch_nor_http() -> None:
    run = python(
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    assert not loaded, (name, loaded)\n"
        "print('light')\n"
    )
    assert (run.returncode, run.stdout) == (0, "light\n"), run.stderr


def test_the_check_sees_a_heavy_import() -> None:
    run = python("import sys, pydantic\nprint([h for h in ('pydantic',) if h in sys.modules])")
    assert run.stdout == "['pydantic']\n"


@cache
def sources() -> dict[str, str]:
    """Every source file by its path from the root."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def users(library: str) -> set[str]:
    """Files that import a library, by statement or by its name in quotes."""
    pattern = rf"^\s*(?:import|from) {library}\b|import_module\(\"{library}\b"
    return {path for path, text in sources().items() if re.search(pattern, text, re.MULTILINE)}


RAY = ("deploy", "ray_pool", "remote_ledger", "replica", "router")
AT_HOME: dict[str, tuple[str, ...]] = {
    "sqlite3": ("greenllm/energy/ledger",),
    "pynvml": ("greenllm/energy/meters/nvml.py",),
    "zeus": ("greenllm/energy/meters/zeus.py",),
    "fastapi": ("serving/",),
    "starlette": ("serving/",),
    "uvicorn": ("serving/",),
    "pydantic": ("serving/", "greenllm/scorecard/schema.py"),
    "openvino": ("greenllm/runner/openvino/",),
    "vllm": ("greenllm/vllm/backend.py", "greenllm/vllm/patches.py"),
    "ray": tuple(f"serving/cluster/{name}.py" for name in RAY),
}


@pytest.mark.parametrize(("library", "homes"), AT_HOME.items(), ids=AT_HOME.keys())
def test_a_library_stays_at_home(library: str, homes: tuple[str, ...]) -> None:
    found = users(library)
    assert all(any(path.startswith(home) for path in found) for home in homes)
    assert {path for path in found if not path.startswith(homes)} == set()


@pytest.mark.parametrize(
    ("text", "home"),
    [
        ("_PagedAttentionExtension", "greenllm/runner/openvino/attention.py"),
        ('"pynvml', "greenllm/energy/meters/nvml.py"),
    ],
)
def test_a_name_is_in_one_file(text: str, home: str) -> None:
    assert [path for path, source in sources().items() if text in source] == [home]
