"""Do all forms of the model say the same? Greedy tokens of each against transformers in float32.

Contract: forms with the model's own bfloat16 weights must agree on every token of a short answer;
of quantized ones it is only said for how long they agree. Texts are compared, because not every
server gives ids; a text of this tokenizer stands for one sequence of ids only, bytes aside.

Not covered: log probabilities; `transformers serve`, which takes texts only.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx

from evals.entry import BenchError
from evals.servers import free_port
from evals.studies.peers.arms import ARMS, Place
from evals.studies.peers.servers import serving
from greenllm.core import GreenllmError
from greenllm.model.quiet import hush_libraries

PROMPT = (1000, 2000, 3000, 400, 5005, 31_000, 12, 700)
TOKENS = 16
GGUF_BF16 = "llama.cpp-bf16"  # what the others were quantized from: no arm is measured with it
MUST_AGREE = ("greenllm-torch-none", GGUF_BF16, "vllm-bf16")
MAY_DIFFER = (
    *("greenllm-int8", "greenllm-int4", "llama.cpp-q8_0", "llama.cpp-q4_0"),
    *("vllm-w8a8", "openvino-genai-int8", "openvino-genai-int4"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one form; `shared` counts the characters until it differs."""

    name: str
    must_agree: bool
    said: str | None = None
    shared: int = 0
    agrees: bool = False
    failure: str = ""

    @property
    def is_peer(self) -> bool:
        """Whether another server than greenllm answered."""
        return self.said is not None and not self.name.startswith("greenllm")

    @property
    def is_wrong(self) -> bool:
        """Whether it did not start, or differs and should not."""
        differs = self.said is not None and not self.agrees
        return bool(self.failure) or (self.must_agree and differs)

    def __str__(self) -> str:
        """One line."""
        if self.failure:
            return f"{self.name}: {self.failure}"
        if self.said is None:
            return f"{self.name}: not installed"
        if self.agrees:
            return f"{self.name}: the same"
        rule = "must be the same" if self.must_agree else "quantized, so it may differ"
        return f"{self.name}: the same for {self.shared} characters ({rule})"


def reference(folder: Path) -> tuple[str, list[int]]:
    """What transformers answers in float32: text and ids.

    Raises:
        GreenllmError: the model has not been made.
    """
    if not (folder / "tokenizer.json").exists():
        raise GreenllmError(
            f"no model in {folder}: run `python -m evals.studies.peers model` first"
        )
    hush_libraries()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = model.generate(torch.tensor([PROMPT]), max_new_tokens=TOKENS, do_sample=False)
    answer = ids[0, len(PROMPT) :].tolist()
    return str(tokenizer.decode(answer)), answer


def compare(envs: Path, text: str) -> Iterator[Finding]:
    """What each form of the model says beside `text`, one after the other."""
    for name in (*MUST_AGREE, *MAY_DIFFER):
        must_agree = name in MUST_AGREE
        try:
            said = answer_of(name, envs)
        except (BenchError, OSError, httpx.HTTPError) as error:
            yield Finding(name, must_agree, failure=" ".join(str(error).split())[-300:])
            continue
        yield judge(name, said, text, must_agree=must_agree)


def judge(name: str, said: str | None, text: str, *, must_agree: bool) -> Finding:
    """Compare an answer; None is that of a form that is not installed."""
    if said is None:
        return Finding(name, must_agree)
    pairs = zip(said, text, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return Finding(name, must_agree, said, shared, agrees=said == text)


def verdict(findings: Sequence[Finding]) -> str | None:
    """Why the check failed; None if it did not."""
    wrong = [finding.name for finding in findings if finding.is_wrong]
    if wrong:
        return f"not as it must be: {', '.join(wrong)}"
    if not any(finding.is_peer for finding in findings):
        return "no peer is installed: run `python -m evals.studies.peers install` first"
    return None


def answer_of(name: str, envs: Path) -> str | None:
    """The text of an arm's answer to the prompt; None if it is not installed.

    Raises:
        BenchError: it does not start.
    """
    arm = ARMS["llama.cpp-q8_0" if name == GGUF_BF16 else name]
    if arm.missing(envs):
        return None
    with tempfile.TemporaryDirectory() as folder:
        place = Place(envs, free_port(), 2, 1, 256, Path(folder))
        command = arm.command(place)
        if name == GGUF_BF16:
            command = [word.replace("-Q8_0.gguf", "-bf16.gguf") for word in command]
        environment = {"HF_HUB_OFFLINE": "1", **arm.environment(place)}
        cores = os.sched_getaffinity(0)
        with serving(command, environment, place.port, cores) as (url, model, _):
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
    text = ""
    asked = httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120, trust_env=False)
    with asked as response:
        for line in response.raise_for_status().iter_lines():
            if line.startswith("data:") and "[DONE]" not in line:
                choices = json.loads(line[5:]).get("choices") or [{}]
                text += choices[0].get("text") or ""
    return text
