"""What loads what, and who may name which library; the declared contracts are `make imports`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
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


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names that a module imports, by statement or by `import_module("name")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            for value in node.args[:1]:
                if isinstance(value, ast.Constant):
                    yield str(value.value).partition(".")[0]


def named(tree: ast.AST) -> Iterator[str]:
    """Top-level names of modules that occur as whole strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(".")[0]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@cache
def sources() -> dict[str, ast.AST]:
    """Every source file by its path from the root."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def imports() -> dict[str, frozenset[str]]:
    return {path: frozenset(imported(tree)) for path, tree in sources().items()}


def users(library: str) -> set[str]:
    return {path for path, names in imports().items() if library in names}


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import sqlite3", {"sqlite3"}),
        ("import a.b as c, d", {"a", "d"}),
        ("def f():\n    from a.b import c", {"a"}),
        ("from . import a", set()),
        ("importlib.import_module('a.b')", {"a"}),
        ("import_module('a')", {"a"}),
        ("__import__('a')", {"a"}),
        ("import_module(name)", set()),
    ],
)
def test_imports_are_found(code: str, names: set[str]) -> None:
    assert set(imported(ast.parse(code))) == names


def test_only_the_ledger_imports_sqlite3() -> None:
    assert users("sqlite3") == {"greenllm/energy/ledger.py"}


def test_only_the_nvml_meter_names_pynvml() -> None:
    by_import = users("pynvml")
    by_string = {path for path, tree in sources().items() if "pynvml" in named(tree)}
    assert by_import | by_string == {"greenllm/energy/meters/nvml.py"}


@pytest.mark.parametrize(
    ("library", "others"),
    [
        ("fastapi", set()),
        ("starlette", set()),
        ("uvicorn", set()),
        ("pydantic", {"greenllm/scorecard/schema.py"}),
    ],
)
def test_http_libraries_stay_in_serving(library: str, others: set[str]) -> None:
    found = users(library)
    assert found
    assert {path for path in found if not path.startswith("serving/")} == others


def test_only_the_openvino_runner_imports_openvino() -> None:
    found = users("openvino")
    assert found
    assert {path for path in found if not path.startswith("greenllm/runner/openvino/")} == set()


def test_the_operation_without_guarantees_is_named_in_one_file() -> None:
    text = "_PagedAttentionExtension"
    files = [path for path in sources() if text in (ROOT / path).read_text(encoding="utf-8")]
    assert files == ["greenllm/runner/openvino/attention.py"]


def test_only_the_vllm_engine_imports_vllm() -> None:
    assert users("vllm") == {"greenllm/vllm/backend.py", "greenllm/vllm/patches.py"}


def test_only_a_few_modules_know_ray() -> None:
    names = ("deploy", "ray_pool", "remote_ledger", "replica", "router")
    assert users("ray") == {f"serving/cluster/{name}.py" for name in names}


def test_every_package_has_sources_to_check() -> None:
    assert {path.partition("/")[0] for path in sources()} == set(PACKAGES)
    assert len(sources()) > 50
