"""The library's reference, from the source text: nothing is imported.

Contract: every public class, method and function of `greenllm`, by module, with its signature and
the first paragraph of its docstring. Not covered: constants; the command line, which has a page
of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = ("cli", "__main__.py")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def library_page(root: Path) -> str:
    """The page for the package at `root`."""
    parts = ["# The library", "By module. Start with `greenllm.core`, the vocabulary."]
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in LEFT_OUT:
            parts += _module(_module_name(root, path), ast.parse(path.read_text("utf-8")))
    return "\n\n".join(parts) + "\n"


def _module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _module(name: str, tree: ast.Module) -> list[str]:
    parts: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and _is_public(node.name):
            parts += _class(node)
        elif isinstance(node, Function) and _is_public(node.name):
            parts += [f"### {node.name}", _code(_signature(node)), _summary(node)]
    return [f"## {name}", _summary(tree), *parts] if parts else []


def _class(node: ast.ClassDef) -> list[str]:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    head = f"class {node.name}({bases})" if bases else f"class {node.name}"
    lines = [f"    {ast.unparse(item)}" for item in node.body if _is_field(item)]
    methods = [item for item in node.body if isinstance(item, Function)]
    lines += [f"    {_signature(item)}" for item in methods if item.name == "__init__"]
    code = _code("\n".join([head + ":", *lines]) if lines else head)
    described = "\n".join(f"- {_method(item)}" for item in methods if _is_public(item.name))
    return [f"### {node.name}", code, _summary(node), *([described] if described else [])]


def _method(node: Function) -> str:
    decorators = {ast.unparse(item) for item in node.decorator_list}
    if "property" in decorators:
        result = f": {ast.unparse(node.returns)}" if node.returns else ""
        return f"`{node.name}{result}` (property): {_summary(node)}"
    signature = _signature(node).removeprefix("async def ").removeprefix("def ")
    return f"`{signature}`: {_summary(node)}"


def _signature(node: Function) -> str:
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {node.name}({ast.unparse(node.args)}){result}"


def _is_field(node: ast.stmt) -> bool:
    named = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    return named and _is_public(ast.unparse(node).partition(":")[0])


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _summary(node: ast.Module | ast.ClassDef | Function) -> str:
    paragraphs: Iterator[str] = iter((ast.get_docstring(node) or "").split("\n\n"))
    return " ".join(next(paragraphs).split())


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
