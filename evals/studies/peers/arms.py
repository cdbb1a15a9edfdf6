"""The arms: which server with which weights, how it is started, and how it must be asked.

Contract: pure, but for `available`. All arms get the same cores, threads, context and number of
sequences; prompts are token ids wherever the server takes them. Prefix caches are off, and prompts
differ anyway.

Not covered: settings that only tuning would find; every peer runs as its documentation starts it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

GENAI_SERVER = Path(__file__).with_name("genai_server.py")
MODEL = "m135"
TRANSFORMERS_SERVE = frozenset({"ignore_eos", "stream_options"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where an arm runs, and within which limits."""

    envs: Path
    port: int
    threads: int
    sequences: int
    context: int
    data: Path

    @property
    def models(self) -> Path:
        """All forms of the model."""
        return self.envs / "models"

    def python(self, name: str) -> str:
        """The interpreter of a peer's environment."""
        return str(self.envs / name / "venv" / "bin" / "python")


@dataclass(frozen=True, slots=True)
class Arm:
    """A server with weights; `needs` are files that tell whether it is installed."""

    name: str
    weights: str
    command: Callable[[Place], list[str]]
    environment: Callable[[Place], Mapping[str, str]] = field(default=lambda place: {})
    needs: tuple[str, ...] = ()
    named_by_path: bool = False
    text_prompts: bool = False
    ends_with_done: bool = True
    never_send: frozenset[str] = frozenset()
    kind: str = ""
    note: str = ""

    def missing(self, envs: Path) -> list[str]:
        """What is not there."""
        return [name for name in self.needs if not (envs / name).exists()]


def _greenllm(runner: str, quantize: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        return [
            *(sys.executable, "-m", "greenllm", "serve", str(place.models / MODEL)),
            *("--port", str(place.port), "--runner", runner, "--quantize", quantize),
            *("--threads", str(place.threads), "--max-num-seqs", str(place.sequences)),
            *("--data-dir", str(place.data), "--no-prefix-cache", "--device", "cpu"),
        ]

    return command


def _llama_cpp(kind: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        threads, slots = str(place.threads), place.sequences
        return [
            str(place.envs / "llama.cpp" / "build" / "bin" / "llama-server"),
            *("-m", str(place.models / f"{MODEL}-{kind}.gguf"), "--host", "127.0.0.1"),
            *("--port", str(place.port), "-t", threads, "-tb", threads, "-np", str(slots)),
            *("-c", str(slots * place.context), "--cache-ram", "0"),
        ]

    return command


def _vllm(folder: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        return [
            *(place.python("vllm"), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(place.models / folder), "--dtype", "bfloat16"),
            *("--host", "127.0.0.1", "--port", str(place.port), "--max-model-len", "2048"),
            *("--max-num-seqs", str(place.sequences), "--no-enable-prefix-caching"),
            *("--kv-cache-memory-bytes", str(1 << 30), "--disable-uvicorn-access-log"),
        ]

    return command


def _vllm_environment(place: Place) -> Mapping[str, str]:
    return {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{place.threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def _transformers(place: Place) -> list[str]:
    program = str(Path(sys.executable).with_name("transformers"))
    return [
        *(program, "serve", str(place.models / MODEL), "--host", "127.0.0.1"),
        *("--port", str(place.port), "--continuous-batching", "--device", "cpu"),
    ]


def _genai(folder: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        return [
            *(place.python("openvino"), str(GENAI_SERVER), str(place.models / folder)),
            *("--port", str(place.port), "--threads", str(place.threads)),
            *("--max-num-seqs", str(place.sequences)),
        ]

    return command


def _make_greenllm(runner: str, quantize: str) -> Arm:
    label = "" if runner == "openvino" else f"-{runner}"
    return Arm(
        name=f"greenllm{label}-{quantize}",
        weights=quantize if quantize != "none" else "bf16",
        command=_greenllm(runner, quantize),
        needs=(f"models/{MODEL}/model.safetensors",),
        kind="greenllm",
        note=f"--runner {runner}",
    )


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        _make_greenllm("openvino", "int8"),
        _make_greenllm("openvino", "int4"),
        _make_greenllm("torch", "none"),
        *(
            Arm(
                name=f"llama.cpp-{kind.lower()}",
                weights=kind,
                command=_llama_cpp(kind),
                needs=("llama.cpp/build/bin/llama-server", f"models/{MODEL}-{kind}.gguf"),
                kind="llama.cpp",
                note="llama-server, native build; KV for all slots is allocated at start",
            )
            for kind in ("Q8_0", "Q4_0")
        ),
        *(
            Arm(
                name=f"vllm-{weights}",
                weights=weights,
                command=_vllm(folder),
                environment=_vllm_environment,
                needs=("vllm/venv/bin/python", f"models/{folder}/model.safetensors"),
                kind="vllm",
                note="CPU build; 1 GiB of KV is allocated at start",
            )
            for weights, folder in (("bf16", MODEL), ("w8a8", f"{MODEL}-w8a8"))
        ),
        *(
            Arm(
                name=f"openvino-genai-{weights}",
                weights=weights,
                command=_genai(f"{MODEL}-ov-{weights}"),
                needs=(
                    "openvino/venv/bin/python",
                    f"models/{MODEL}-ov-{weights}/openvino_detokenizer.xml",
                ),
                kind="openvino",
                note="ContinuousBatchingPipeline behind a thin server of ours",
            )
            for weights in ("int8", "int4")
        ),
        Arm(
            name="transformers-bf16",
            weights="bf16",
            command=_transformers,
            environment=lambda place: {"HF_HUB_CACHE": str(place.data)},
            needs=(f"models/{MODEL}/model.safetensors",),
            text_prompts=True,
            named_by_path=True,
            ends_with_done=False,
            never_send=TRANSFORMERS_SERVE,
            kind="transformers",
            note="transformers serve with continuous batching; prompts are texts of as many tokens",
        ),
    )
}
