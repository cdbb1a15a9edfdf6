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
    """One model that answers.

    `name` is the official name, the one in receipts, in the ledger and in metrics; `aliases` are
    others that clients may use. `info` says how the model was loaded.
    """

    name: str
    aliases: tuple[str, ...]
    info: ModelInfo
    engine: Engine
    tokenizer: Tokenizer
    drafting: Drafting
    threads: ThreadPlan

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the model, the official one first."""
        return (self.name, *self.aliases)
