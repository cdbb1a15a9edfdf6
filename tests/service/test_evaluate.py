"""`greenllm eval` against real servers: figures are the model's own, joules the receipts'."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from greenllm.model.options import BUNDLED_PATH

TEXTS = ("Once upon a time, a brave fox named Mira lived in a quiet forest.", "The end. " * 150)
Evaluate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def evaluate(greenllm: Evaluate) -> Evaluate:
    """Runs the command."""
    return partial(greenllm, "eval")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(TEXTS), encoding="utf-8")
    return path


def bits_by_hand(texts: tuple[str, ...], longest: int) -> float:
    """Bits per byte from transformers' model, in windows of the context."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_PATH)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_PATH, dtype=torch.float32)
    first = tokenizer.bos_token_id or tokenizer.eos_token_id
    nats = 0.0
    for text in texts:
        ids = [first, *tokenizer(text.strip(), add_special_tokens=False)["input_ids"]]
        for start in range(1, len(ids), longest - 1):
            end = min(len(ids), start + longest - 1)
            read = ids[max(0, end - longest) : end]
            with torch.no_grad():
                logprobs = model(torch.tensor([read])).logits[0].log_softmax(-1)
            rated = range(len(read) - (end - start), len(read))
            nats -= sum(float(logprobs[i - 1, read[i]]) for i in rated)
    return nats / math.log(2) / sum(len(text.strip().encode()) for text in texts)


def test_bits_per_byte_are_the_models_own(evaluate: Evaluate, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--serve", "--dtype float32 --threads 1 --device cpu", "--output", str(out))
    run = evaluate(f"perplexity:{book}", *options)
    assert run.returncode == 0, run.stderr
    (task,) = json.loads((out / "evaluation.json").read_text())["tasks"].values()
    config = json.loads((BUNDLED_PATH / "config.json").read_text())
    expected = bits_by_hand(TEXTS, config["max_position_embeddings"] - 1)
    assert task["value"]["value"] == pytest.approx(expected, rel=1e-4)
    assert task["measure"] == "bits per byte"


def test_quality_and_joules_come_together(evaluate: Evaluate, server: Any, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    good, bad = "Once upon a time there was a fox.", "Once upon a time there was fox a."
    pairs.write_text(json.dumps({"sentence_good": good, "sentence_bad": bad}))
    began_s = time.time()
    tasks = f"generated.upper,generated.json,pairs:{pairs}"
    out = tmp_path / "out"
    run = evaluate(tasks, "--url", server.url, "--limit", "10", "--output", str(out))
    assert run.returncode == 0, run.stderr
    found = json.loads((out / "evaluation.json").read_text())
    upper, as_json, paired = found["tasks"].values()
    assert upper["value"]["value"] >= 0.7
    assert as_json["value"]["examples"] == 10
    assert paired["value"]["value"] == 1.0
    assert upper["joules_per_correct"]["value"] >= upper["joules_per_example"] > 0
    assert found["energy"]["measured"] is False
    spent_j = sum(row.active_j + row.idle_j for row in server.rows(began_s))
    # Every answer's figure is rounded to three digits.
    asked_j = sum(task["energy_j"] for task in found["tasks"].values())
    assert asked_j == pytest.approx(spent_j, rel=5e-3)
    assert "modelled, not measured" in run.stdout
    assert (out / "evaluation.svg").exists()
    assert (out / "evaluation.md").read_text().strip() == run.stdout.strip()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("generated.none",), "there is no generated.none"),
        (("generated", "--url", "http://127.0.0.1:9"), "http://127.0.0.1:9/v1/models"),
        (("generated", "--url", "http://x", "--serve", "--threads 1"), "--serve is for a server"),
        (("generated", "--limit", "0"), "--limit must be greater than 0 (got 0)"),
        ((), "no tasks were named"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    evaluate: Evaluate, options: tuple[str, ...], said: str
) -> None:
    run = evaluate(*options)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_examples_the_server_refuses_are_wrong_and_told(
    evaluate: Evaluate, server: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": "Upper case: fox", "answer": "FOX"},
            {"prompt": "fox " * 5000, "answer": "FOX"}]  # fmt: skip
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    run = evaluate(f"exact:{path}", "--url", server.url, "--output", str(tmp_path / "out"))
    assert run.returncode == 0, run.stderr
    (task,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["tasks"].values()
    assert (task["refused"], task["value"]["examples"]) == (1, 2)
    assert "context" in task["refusals"][0]
    assert "1 examples were refused and count as wrong" in run.stdout
