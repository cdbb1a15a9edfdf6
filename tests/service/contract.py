"""What the contract's tests share: the engines, questions, transformers' answers, a schema."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import greenllm

if TYPE_CHECKING:
    from tests.service.conftest import Server

BUNDLED = Path(greenllm.__file__).parent / "model" / "bundled"
ENGINES: dict[str, tuple[str, ...]] = {
    "torch": ("--engine", "native", "--runner", "torch"),
    "openvino": ("--engine", "native", "--runner", "openvino"),
    "vllm": ("--engine", "vllm", "--kv-cache-gb", "0.2"),
}
ASKED = tuple(os.environ.get("GREENLLM_ENGINES", "torch,openvino").split(","))
TEXTS = (
    "Who are you?",
    "Tell me a short story.",
    "What is 12 + 30?",
    "Hello! How are you today?",
    "Write the word fox three times.",
)
MAX_TOKENS = 40
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["fox", "owl"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def greedy_answers() -> dict[str, str]:
    """Greedy answers of transformers."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    found: dict[str, str] = {}
    for text in TEXTS:
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
        )
        found[text] = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return found


def ask(server: Server, text: str, **more: Any) -> dict[str, Any]:
    body = server.chat(text, **{"temperature": 0, "max_tokens": MAX_TOKENS, **more})
    answer = server.http.post("/v1/chat/completions", json=body).raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def said(body: dict[str, Any]) -> str:
    text: str = body["choices"][0]["message"]["content"]
    return text


def together(server: Server, texts: tuple[str, ...], **more: Any) -> list[str]:
    with ThreadPoolExecutor(len(texts)) as pool:
        return [said(body) for body in pool.map(lambda text: ask(server, text, **more), texts)]


def held_to(schema: Any, **more: Any) -> dict[str, Any]:
    named = {"name": "animal", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}, **more}


def check_animals(body: dict[str, Any]) -> None:
    for choice in body["choices"]:
        assert choice["finish_reason"] == "stop"
        found = json.loads(choice["message"]["content"])
        assert list(found) == ["name", "age", "kind"]
        assert isinstance(found["name"], str)
        assert len(found["name"]) <= 12
        assert found["age"] in range(100)
        assert found["kind"] in ("fox", "owl")
