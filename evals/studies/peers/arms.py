"""The arms: which server with which weights, how it is started, and how it must be asked.

Contract: pure, but for `missing`. A command is a text with slots, as it would be typed. All arms
get the same cores, threads, context and number of sequences; prompts are token ids wherever the
server takes them. Prefix caches are off, and prompts differ anyway.

Not covered: settings that only tuning would find; every peer runs as its documentation starts it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MODEL = "m135"
TRANSFORMERS_SERVE = frozenset({"ignore_eos", "stream_options"})
_KV_BYTES = 1 << 30


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

    def slots(self) -> dict[str, str]:
        """What commands and environments may name."""
        return {
            **{name: str(getattr(self, name)) for name in ("envs", "port", "threads", "sequences")},
            "data": str(self.data),
            "models": str(self.models),
            "python": sys.executable,
            "programs": str(Path(sys.executable).parent),
            "here": str(Path(__file__).parent),
            "all_context": str(self.sequences * self.context),
            "last_thread": str(self.threads - 1),
        }


@dataclass(frozen=True, slots=True)
class Arm:
    """A server with weights; `needs` are files that tell whether it is installed."""

    name: str
    weights: str
    kind: str
    template: str
    note: str
    needs: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    named_by_path: bool = False
    text_prompts: bool = False
    ends_with_done: bool = True
    never_send: frozenset[str] = frozenset()

    def command(self, place: Place) -> list[str]:
        """The words of its command line."""
        return [word.format_map(place.slots()) for word in self.template.split()]

    def environment(self, place: Place) -> dict[str, str]:
        """Variables that it is started with."""
        return {name: text.format_map(place.slots()) for name, text in self.variables.items()}

    def missing(self, envs: Path) -> list[str]:
        """What is not there."""
        return [name for name in self.needs if not (envs / name).exists()]


def _greenllm(runner: str, quantize: str) -> Arm:
    label = "" if runner == "openvino" else f"-{runner}"
    return Arm(
        name=f"greenllm{label}-{quantize}",
        weights=quantize if quantize != "none" else "bf16",
        kind="greenllm",
        template=f"{{python}} -m greenllm serve {{models}}/{MODEL} --port {{port}}"
        f" --runner {runner} --quantize {quantize} --threads {{threads}}"
        " --max-num-seqs {sequences} --data-dir {data} --no-prefix-cache --device cpu",
        note=f"--runner {runner}",
        needs=(f"models/{MODEL}/model.safetensors",),
    )


def _llama_cpp(weights: str) -> Arm:
    return Arm(
        name=f"llama.cpp-{weights.lower()}",
        weights=weights,
        kind="llama.cpp",
        template=f"{{envs}}/llama.cpp/build/bin/llama-server -m {{models}}/{MODEL}-{weights}.gguf"
        " --host 127.0.0.1 --port {port} -t {threads} -tb {threads} -np {sequences}"
        " -c {all_context} --cache-ram 0",
        note="llama-server, native build; KV for all slots is allocated at start",
        needs=("llama.cpp/build/bin/llama-server", f"models/{MODEL}-{weights}.gguf"),
    )


def _vllm(weights: str, folder: str) -> Arm:
    return Arm(
        name=f"vllm-{weights}",
        weights=weights,
        kind="vllm",
        template="{envs}/vllm/venv/bin/python -m vllm.entrypoints.openai.api_server"
        f" --model {{models}}/{folder} --dtype bfloat16 --host 127.0.0.1 --port {{port}}"
        " --max-model-len 2048 --max-num-seqs {sequences} --no-enable-prefix-caching"
        f" --kv-cache-memory-bytes {_KV_BYTES} --disable-uvicorn-access-log",
        note="CPU build; 1 GiB of KV is allocated at start",
        needs=("vllm/venv/bin/python", f"models/{folder}/model.safetensors"),
        variables={
            "VLLM_CPU_OMP_THREADS_BIND": "0-{last_thread}",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        },
    )


def _genai(weights: str) -> Arm:
    folder = f"{MODEL}-ov-{weights}"
    return Arm(
        name=f"openvino-genai-{weights}",
        weights=weights,
        kind="openvino",
        template=f"{{envs}}/openvino/venv/bin/python {{here}}/genai_server.py {{models}}/{folder}"
        " --port {port} --threads {threads} --max-num-seqs {sequences}",
        note="ContinuousBatchingPipeline behind a thin server of ours",
        needs=("openvino/venv/bin/python", f"models/{folder}/openvino_detokenizer.xml"),
    )


_TRANSFORMERS = Arm(
    name="transformers-bf16",
    weights="bf16",
    kind="transformers",
    template=f"{{programs}}/transformers serve {{models}}/{MODEL} --host 127.0.0.1 --port {{port}}"
    " --continuous-batching --device cpu",
    note="transformers serve with continuous batching; prompts are texts of as many tokens",
    needs=(f"models/{MODEL}/model.safetensors",),
    variables={"HF_HUB_CACHE": "{data}"},
    text_prompts=True,
    named_by_path=True,
    ends_with_done=False,
    never_send=TRANSFORMERS_SERVE,
)
ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        *(_greenllm("openvino", "int8"), _greenllm("openvino", "int4"), _greenllm("torch", "none")),
        *(_llama_cpp("Q8_0"), _llama_cpp("Q4_0")),
        *(_vllm("bf16", MODEL), _vllm("w8a8", f"{MODEL}-w8a8")),
        *(_genai("int8"), _genai("int4"), _TRANSFORMERS),
    )
}
