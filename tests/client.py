"""A server as tests ask it, wherever it runs: bodies, metrics, and the ledger behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from greenllm.energy.ledger import Ledger, Session
from greenllm.energy.receipt import Receipt
from tests.waiting import until

MODEL = "bundled"


class Client:
    """Asks a server that serves `model` and keeps its ledger in `data_dir`."""

    model = MODEL
    data_dir: Path
    http: httpx.Client
    openai: openai.OpenAI

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text."""
        tokens: list[int] = self.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
        return tokens

    def chat(self, text: str = "Tell me about a fox.", **more: Any) -> dict[str, Any]:
        """Body of a chat request."""
        return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}

    def completion(self, prompt: Any = "Once upon a time", **more: Any) -> dict[str, Any]:
        """Body of a completion request; long answers unless told otherwise."""
        return {"model": MODEL, "prompt": prompt, "ignore_eos": True, **more}

    def metrics(self) -> dict[str, float]:
        """Samples by name with labels."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def metric(self, name: str) -> float:
        return self.metrics()[f"greenllm_{name}"]

    def wait_idle(self) -> None:
        """Wait until no sequence is running or waiting."""
        names = ("greenllm_sequences_running", "greenllm_sequences_waiting")

        def is_idle() -> bool:
            metrics = self.metrics()
            return not any(metrics[name] for name in names)

        until(is_idle, "an idle engine")

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger's file, opened beside the running server."""
        with contextlib.closing(Ledger(self.data_dir / "ledger.sqlite", read_only=True)) as ledger:
            yield ledger

    def rows(self, since_s: float = 0.0, **wanted: Any) -> list[Receipt]:
        """Receipts whose fields have the wanted values."""
        with self.ledger() as ledger:
            found = ledger.receipts(since_s=since_s)
        return [row for row in found if all(getattr(row, k) == v for k, v in wanted.items())]

    def row(self, request_id: str) -> Receipt:
        """One request's receipt, once it is there."""

        def found() -> Receipt | None:
            with self.ledger() as ledger:
                return ledger.receipt(request_id)

        return until(found, f"the row of {request_id}")

    def session(self) -> Session:
        """The latest session, with its joules added up and checked."""
        with self.ledger() as ledger:
            session = ledger.sessions()[-1]
            sum_j = ledger.session_sum_j(session.session_id)
        totals = session.totals
        assert totals.residual <= 1e-6, totals
        assert sum_j == pytest.approx(totals.requests_j, rel=1e-6)
        return session
