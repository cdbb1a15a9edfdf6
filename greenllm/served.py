"""A loaded model as those see it that pass requests to it. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from greenllm.engine.drafting import Drafting
from greenllm.engine.protocol import Engine
from greenllm.model.info import ModelInfo
from greenllm.runner.threads import ThreadPlan
from greenllm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Served:
    """One model that answers, under its names; the first is the official one."""

    names: tuple[str, ...]
    engine: Engine
    tokenizer: Tokenizer
    drafting: Drafting
    threads: ThreadPlan

    @property
    def name(self) -> str:
        """The official name: the one in receipts, in the ledger and in metrics."""
        return self.names[0]

    @property
    def info(self) -> ModelInfo:
        """The model as it was loaded."""
        return self.engine.info
