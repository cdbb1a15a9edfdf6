"""What the requests of a window did: each pass through a model, noted as it runs.

Contract: a pass is a step of some model, whole or cut off, over some chunks; it claims a part of a
step of the served model, as large as the parameters it reads are of that model's. Claims and time
are shared by the requests in the pass, rows, FLOPs and bytes are each one's own.

Not covered: joules (see `account`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from greenllm.core import Batch, Chunk, DraftPass, Phase, Sample
from greenllm.energy.account.attribution import Tally, Work
from greenllm.exits import ExitResult
from greenllm.shape import ModelShape

Key = tuple[str, Phase]


class WindowTally:
    """The work of each request and phase since the last reading; `shape` is the served model's."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._tallies: dict[Key, Tally] = {}

    def __bool__(self) -> bool:
        return bool(self._tallies)

    @property
    def owners(self) -> set[str]:
        """Requests with work in it."""
        return {request_id for request_id, _ in self._tallies}

    def works(self) -> list[tuple[Key, Work]]:
        """The sums so far."""
        return [(key, tally.work()) for key, tally in self._tallies.items()]

    def take(self) -> list[tuple[Key, Work]]:
        """The sums so far, which are forgotten."""
        found, self._tallies = self.works(), {}
        return found

    def add_step(self, batch: Batch, duration_s: float, samples: Sequence[Sample] = ()) -> None:
        """A step of the served model, whose exit may have answered for some chunks."""
        pairs = list(zip(batch.chunks, samples, strict=False))
        asked = [(chunk, sample.exit) for chunk, sample in pairs if sample.exit is not None]
        if not asked:
            whole = [chunk.through_all_layers() for chunk in batch.chunks]
            self._add_pass(whole, self._shape, duration_s)
            return
        rest = [_whole(c, s.exit) for c, s in pairs if s.exit is None or not s.exit.is_all]
        shape = self._shape.first(_exit_layer(asked[0][0]))
        # Those that ask for one token and those that ask for several run apart.
        counts = sorted({result.num_steps for _, result in asked})
        step = shape.num_parameters / self._shape.num_parameters
        whole_s = duration_s / (sum(counts) * step + bool(rest))
        for count in counts:
            early = [replace(c, num_tokens=count) for c, r in asked if r.num_steps == count]
            self._add_pass(early, shape, count * step * whole_s, count)
        if rest:
            self._add_pass(rest, self._shape, whole_s)

    def _add_pass(
        self, chunks: Sequence[Chunk], shape: ModelShape, duration_s: float, steps: int = 1
    ) -> None:
        """The work of each chunk; a request's first chunk carries its claim on the steps.

        In several steps each runs one token after another, and needs the logits of all.
        """
        ids = [chunk.seq.request.request_id for chunk in chunks]
        unclaimed = set(ids)
        claim = 1 / max(1, len(unclaimed))
        share = shape.num_parameters / self._shape.num_parameters
        for chunk, request_id in zip(chunks, ids, strict=True):
            tally = self._tally(request_id, chunk.phase)
            if request_id in unclaimed:
                unclaimed.remove(request_id)
                tally.steps += claim * share * steps
                tally.residence_s += claim * duration_s
            tally.rows += share * steps
            tally.chunks += share if steps == 1 and chunk.num_tokens + len(chunk.draft) > 1 else 0.0
            tally.flops += _flops(chunk, shape, steps if steps > 1 else 0)
            tally.kv_bytes += _kv_bytes(chunk, shape, steps)

    def add_draft(
        self,
        asked: Sequence[Chunk],
        passes: Sequence[DraftPass],
        shape: ModelShape,
        duration_s: float,
    ) -> None:
        """What a drafter of `shape` computed; its time goes by steps.

        Where it computed nothing, those it was asked about share the time.
        """
        num_steps = sum(one.num_steps for one in passes)
        if not num_steps:
            ids = {chunk.seq.request.request_id for chunk in asked}
            for request_id in ids:
                self._tally(request_id, "draft").residence_s += duration_s / len(ids)
        for one in passes:
            self._add_draft_pass(one, shape, duration_s * one.num_steps / num_steps)

    def _add_draft_pass(self, one: DraftPass, shape: ModelShape, duration_s: float) -> None:
        share = shape.num_parameters / self._shape.num_parameters
        unclaimed = {chunk.seq.request.request_id for chunk in one.chunks}
        claim = 1 / max(1, len(unclaimed))
        for chunk in one.chunks:
            request_id = chunk.seq.request.request_id
            tally = self._tally(request_id, "draft")
            if request_id in unclaimed:
                unclaimed.remove(request_id)
                tally.steps += claim * share * one.num_steps
                tally.residence_s += claim * duration_s
            tally.rows += share * one.num_steps
            tally.chunks += share if chunk.num_tokens > 1 else 0.0
            tally.flops += shape.flops(chunk.start, chunk.num_tokens, int(chunk.samples))
            tally.kv_bytes += shape.kv_bytes(chunk.start, chunk.num_tokens)
            for place in range(chunk.end, chunk.end + one.num_steps - 1):
                tally.flops += shape.flops(place, 1, 1)
                tally.kv_bytes += shape.kv_bytes(place, 1)

    def _tally(self, request_id: str, phase: Phase) -> Tally:
        key = (request_id, phase)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally()
        return tally


def _whole(chunk: Chunk, result: ExitResult | None) -> Chunk:
    """What all layers ran for a chunk: tokens that the exit has chosen before are among them."""
    whole = chunk.through_all_layers()
    if result is None:
        return whole
    return replace(whole, num_tokens=whole.num_tokens + result.num_tokens)


def _flops(chunk: Chunk, shape: ModelShape, least_logits: int) -> float:
    """FLOPs of a chunk, its adapter's included."""
    request = chunk.seq.request
    scores = request.sampling.prompt_logprobs is not None and chunk.phase == "prefill"
    num_logits = chunk.num_tokens if scores else int(chunk.samples) * (1 + len(chunk.draft))
    adapter = request.adapter
    extra = 0 if adapter is None else 2 * adapter.num_parameters * chunk.num_tokens
    return shape.flops(chunk.start, chunk.num_tokens, max(num_logits, least_logits)) + extra


def _kv_bytes(chunk: Chunk, shape: ModelShape, steps: int) -> float:
    """Bytes of keys and values: of all tokens at once, or in steps of one token."""
    if steps == 1:
        return shape.kv_bytes(chunk.start, chunk.num_tokens)
    return sum(shape.kv_bytes(place, 1) for place in range(chunk.start, chunk.end))


def _exit_layer(chunk: Chunk) -> int:
    if chunk.exit is None:
        raise ValueError("a chunk may exit only where its request allows it")
    return chunk.exit.layer
