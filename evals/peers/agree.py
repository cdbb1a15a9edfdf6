"""Do all forms of the model say the same? Greedy tokens of each against transformers in float32.

Contract: the bfloat16 GGUF must agree on every token of a short answer, as its weights are the
same; of other forms it is only said for how long they agree. Texts are compared, because not every
server gives ids; a text of this tokenizer stands for one sequence of ids only, bytes aside.

Not covered: log probabilities.
"""

from __future__ import annotations

import json
import os
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from evals.peers.arms import ARMS, MODEL, Place
from evals.peers.servers import free_port, running

PROMPT = (1000, 2000, 3000, 400, 5005, 31_000, 12, 700)
TOKENS = 16


def reference(folder: Path) -> tuple[str, list[int]]:
    """What transformers answers in float32: text and ids."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = model.generate(torch.tensor([PROMPT]), max_new_tokens=TOKENS, do_sample=False)
    answer = ids[0, len(PROMPT) :].tolist()
    return str(tokenizer.decode(answer)), answer


def compare(envs: Path) -> Iterator[str]:
    """One line per form of the model that is installed."""
    text, ids = reference(envs / "models" / MODEL)
    yield f"transformers float32: {ids}"
    for name in ("llama.cpp-bf16", "llama.cpp-q8_0", "openvino-genai-int8", "vllm-bf16"):
        said = answer_of(name, envs)
        if said is None:
            yield f"{name}: not installed"
            continue
        shared = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(said, text, strict=False))
        )
        yield f"{name}: {'the same' if said == text else f'the same for {shared} characters'}"


def answer_of(name: str, envs: Path) -> str | None:
    """The text of an arm's answer to the prompt; None if it is not installed."""
    arm = ARMS["llama.cpp-q8_0" if name == "llama.cpp-bf16" else name]
    if arm.missing(envs):
        return None
    with tempfile.TemporaryDirectory() as folder:
        place = Place(envs, free_port(), 2, 1, 256, Path(folder))
        command = arm.command(place)
        if name == "llama.cpp-bf16":
            command = [word.replace("-Q8_0.gguf", "-bf16.gguf") for word in command]
        environment = {"HF_HUB_OFFLINE": "1", **arm.environment(place)}
        log, cores = Path(folder) / "log", os.sched_getaffinity(0)
        with running(command, environment, place.port, log, cores) as (url, model, _):
            return _ask(url, model, PROMPT)


def _ask(url: str, model: str, prompt: Sequence[int]) -> str:
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    text = ""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as lines:
        for line in lines:
            if line.startswith(b"data:") and b"[DONE]" not in line:
                choices = json.loads(line[5:]).get("choices") or [{}]
                text += choices[0].get("text") or ""
    return text
