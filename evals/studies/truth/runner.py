"""The simulated model: a runner and a drafter that compute nothing and cost something.

Contract: see `greenllm.runner.base` and `greenllm.speculation.drafter`. The token at a place is a
function of the sequence's seed and the place, and a draft token is right as often as `_ACCEPTED`
says, so answers do not depend on who shares a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evals.studies.truth.costs import (
    BODY_PARAMETERS,
    HEAD_PARAMETERS,
    KV_BYTES,
    LAYERS,
    WIDTH,
)
from evals.studies.truth.processor import Processor
from greenllm.core import Batch, Chunk, DraftPass, Sample
from greenllm.core import Sequence as TokenSequence
from greenllm.model.info import LoadError, ModelInfo
from greenllm.runner.base import AdapterSource
from greenllm.runner.threads import ThreadPlan
from greenllm.shape import ModelShape
from greenllm.speculation.drafter import Drafter

VOCABULARY = 1000
CONTEXT = 1024
BLOCK = 16
DRAFT_SIZE = 0.1
_ACCEPTED = 0.7
_COPY_S = 2e-5
_SHAPE = ModelShape(BODY_PARAMETERS, HEAD_PARAMETERS, LAYERS, WIDTH, KV_BYTES)


def _hash(seq: TokenSequence, place: int) -> int:
    return (seq.seed * 2_654_435_761 + place * 40_503 + 12_345) * 2_246_822_519 >> 7


def token_at(seq: TokenSequence, place: int) -> int:
    """The token that the model chooses there."""
    return _hash(seq, place) % VOCABULARY


class SimulatedRunner:
    """Takes the time and the joules of each batch from a processor."""

    lora_targets: Mapping[str, tuple[int, int]] = {}

    def __init__(self, processor: Processor, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = BLOCK
        self.shape = _SHAPE
        self.info = ModelInfo(
            name="simulated",
            source="simulated",
            architecture="none",
            parameters=_SHAPE.num_parameters,
            weight_bytes=_SHAPE.num_parameters,
            quantization="none",
            dtype="none",
            device="simulated",
            context_length=CONTEXT,
            vocab_size=VOCABULARY,
            eos_token_ids=frozenset(),
        )
        self._processor = processor

    def use_adapters(self, source: AdapterSource) -> None:
        """Adapters have no weights here."""

    def prepare_adapter(self, digest: str) -> None:
        """Nothing to prepare."""

    def use_threads(self, plan: ThreadPlan, *, trial: bool = False) -> None:
        """There are no threads."""

    def early_exit(self, layer: int) -> Drafter:
        """There are no layers."""
        raise LoadError("the simulated model cannot be left early")

    def as_drafter(self) -> Drafter:
        """See `SimulatedDrafter`."""
        raise LoadError("the simulated model drafts for nobody")

    def prepare_check(self, num_tokens: int) -> None:
        """Nothing to prepare."""

    def prepare_exit(self, layer: int) -> None:
        """Nothing to prepare."""

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Takes a little time."""
        self._processor.machine.rest(_COPY_S * len(copies))

    def run(self, batch: Batch) -> list[Sample]:
        """Compute a step; see `Runner.run`."""
        if batch.chunks:
            self._processor.step(batch.chunks)
        return [_sample(chunk) for chunk in batch.chunks]


def _sample(chunk: Chunk) -> Sample:
    seq = chunk.seq
    if not chunk.samples or len(seq.token_ids) >= seq.max_len:
        return Sample()
    found: list[int] = []
    for drafted in (*chunk.draft, None):
        found.append(token_at(seq, len(seq.token_ids) + len(found)))
        if found[-1] != drafted:
            break
    return Sample(tuple(found))


class SimulatedDrafter:
    """A draft model of a tenth of the size."""

    def __init__(self, processor: Processor) -> None:
        self.passes: Sequence[DraftPass] = ()
        self.shape: ModelShape | None = ModelShape(
            round(DRAFT_SIZE * BODY_PARAMETERS),
            round(DRAFT_SIZE * HEAD_PARAMETERS),
            LAYERS,
            round(DRAFT_SIZE * WIDTH),
            round(DRAFT_SIZE * KV_BYTES),
        )
        self._processor = processor

    def prepare(self, num_tokens: int) -> None:
        """Nothing to prepare."""

    def draft(self, chunks: Sequence[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        """As many tokens as the smallest room has; see `Drafter`."""
        count = min(chunk.room for chunk in chunks)
        for ahead in range(count):
            self._processor.draft(chunks, ahead, DRAFT_SIZE)
        self.passes = (DraftPass(tuple(chunks), count),)
        return [_drafted(chunk, count) for chunk in chunks]


def _drafted(chunk: Chunk, count: int) -> tuple[int, ...]:
    seq = chunk.seq
    places = range(len(seq.token_ids), len(seq.token_ids) + count)
    wrong = [_hash(seq, place + CONTEXT) % 1000 >= 1000 * _ACCEPTED for place in places]
    return tuple(
        (token_at(seq, place) + is_wrong) % VOCABULARY
        for place, is_wrong in zip(places, wrong, strict=True)
    )
