"""What requests did in a stretch of time: each pass through a model, noted as it runs.

Contract: a pass is a step of some model, whole or cut off, over some chunks. Its time and its
joules are shared by the requests in it; FLOPs are each one's own. The times of plain steps of the
served model teach the model of steps.

Not covered: what the meter says of it (see `account`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from greenllm.core import Batch, Chunk, DraftPass, Phase, Sample
from greenllm.energy.account.attribution import Work
from greenllm.energy.account.curve import DRAFTING, WIDTHS, between, place_of
from greenllm.energy.account.steps import Load, StepModel
from greenllm.exits import ExitResult
from greenllm.shape import ModelShape

Key = tuple[str, Phase]


class WindowTally:
    """The work of each request and phase, and for how long steps of each width ran.

    Args:
        shape: of the served model.
        model: tells shares in steps, and learns from their times.
        watts: power of steps by their width, in any unit.
    """

    def __init__(self, shape: ModelShape, model: StepModel, watts: Sequence[float]) -> None:
        self.busy_s = [0.0] * WIDTHS
        self._shape = shape
        self._model = model
        self._watts = watts
        self._sums: dict[Key, _Sums] = {}

    @property
    def owners(self) -> set[str]:
        """Requests with work in it."""
        return {request_id for request_id, _ in self._sums}

    def works(self) -> list[tuple[Key, Work]]:
        """The sums so far."""
        return [(key, sums.work()) for key, sums in self._sums.items()]

    def add_step(self, batch: Batch, duration_s: float, samples: Sequence[Sample] = ()) -> None:
        """A step of the served model, whose exit may have answered for some chunks."""
        if not batch.chunks:
            return
        pairs = list(zip(batch.chunks, samples, strict=False))
        asked = [(chunk, sample.exit) for chunk, sample in pairs if sample.exit is not None]
        if not asked:
            whole = [chunk.through_all_layers() for chunk in batch.chunks]
            self._add_pass(whole, self._shape, duration_s, learns=True)
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
        self.busy_s[DRAFTING] += duration_s
        if not num_steps:
            owners = {chunk.seq.request.request_id for chunk in asked}
            for owner in owners:
                sums = self._of((owner, "draft"))
                sums.residence_s += duration_s / len(owners)
                sums.present_s += duration_s
        for one in passes:
            self._add_draft_pass(one, shape, duration_s * one.num_steps / num_steps)

    def _add_pass(
        self,
        chunks: Sequence[Chunk],
        shape: ModelShape,
        duration_s: float,
        steps: int = 1,
        *,
        learns: bool = False,
    ) -> None:
        """The work of each chunk; in several steps each runs one token after another."""
        parts = [(_key(chunk), _load(chunk, shape, steps)) for chunk in chunks]
        total = self._share_out(parts, duration_s)
        knot, part = place_of(total.tokens)
        self.busy_s[knot] += (1 - part) * duration_s
        self.busy_s[knot + 1] += part * duration_s
        if learns:
            self._model.learn(total, duration_s)

    def _add_draft_pass(self, one: DraftPass, shape: ModelShape, duration_s: float) -> None:
        parts: list[tuple[Key, Load]] = []
        for chunk in one.chunks:
            load = _load(chunk, shape, 1)
            load.flops = shape.flops(chunk.start, chunk.num_tokens, int(chunk.samples))
            for place in range(chunk.end, chunk.end + one.num_steps - 1):
                load.flops += shape.flops(place, 1, 1)
            parts.append(((chunk.seq.request.request_id, "draft"), load))
        self._share_out(parts, duration_s)

    def _share_out(self, parts: Sequence[tuple[Key, Load]], duration_s: float) -> Load:
        """Divide a pass among its requests, and a request's share among its phases."""
        loads: dict[str, Load] = {}
        total = Load()
        for (owner, _), load in parts:
            total.add(load)
            if owner in loads:
                loads[owner] = _together(loads[owner], load)
            else:
                loads[owner] = load
        pass_j = duration_s * between(self._watts, total.tokens)
        shares = self._model.shares(list(loads.values()), self._watts)
        share_of = dict(zip(loads, shares, strict=True))
        for key, load in parts:
            owner = key[0]
            of_own = load.tokens / max(loads[owner].tokens, 1)
            sums = self._of(key)
            sums.claim_j += pass_j * share_of[owner] * of_own
            sums.flops += load.flops
            sums.residence_s += of_own * duration_s / len(loads)
            sums.present_s += of_own * duration_s
        return total

    def _of(self, key: Key) -> _Sums:
        sums = self._sums.get(key)
        if sums is None:
            sums = self._sums[key] = _Sums()
        return sums


class _Sums:
    """Work being added up; a step touches one for each request, so it is a plain object."""

    __slots__ = ("claim_j", "flops", "present_s", "residence_s")

    def __init__(self) -> None:
        self.claim_j = self.flops = self.residence_s = self.present_s = 0.0

    def work(self) -> Work:
        return Work(self.claim_j, self.flops, self.residence_s, self.present_s)


def _together(one: Load, other: Load) -> Load:
    both = Load()
    both.add(one)
    both.add(other)
    return both


def _key(chunk: Chunk) -> Key:
    return (chunk.seq.request.request_id, chunk.phase)


def _whole(chunk: Chunk, result: ExitResult | None) -> Chunk:
    """What all layers ran for a chunk: tokens that the exit has chosen before are among them."""
    whole = chunk.through_all_layers()
    if result is None:
        return whole
    return replace(whole, num_tokens=whole.num_tokens + result.num_tokens)


def _load(chunk: Chunk, shape: ModelShape, steps: int) -> Load:
    return Load(
        1.0,
        1.0 if chunk.phase == "prefill" else 0.0,
        1.0 if chunk.draft else 0.0,
        _flops(chunk, shape, steps),
        shape.kv_bytes(chunk.start, chunk.num_tokens),
        chunk.num_tokens,
    )


def _flops(chunk: Chunk, shape: ModelShape, steps: int = 1) -> float:
    """FLOPs of a chunk, its adapter's included; in several steps all logits are needed."""
    request = chunk.seq.request
    scores = request.sampling.prompt_logprobs is not None and chunk.phase == "prefill"
    num_logits = chunk.num_tokens if scores else int(chunk.samples) * (1 + len(chunk.draft))
    adapter = request.adapter
    extra = 0 if adapter is None else 2 * adapter.num_parameters * chunk.num_tokens
    least_logits = steps if steps > 1 else 0
    return shape.flops(chunk.start, chunk.num_tokens, max(num_logits, least_logits)) + extra


def _exit_layer(chunk: Chunk) -> int:
    if chunk.exit is None:
        raise ValueError("a chunk may exit only where its request allows it")
    return chunk.exit.layer
