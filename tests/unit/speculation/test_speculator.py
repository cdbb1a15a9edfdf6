"""Speculation: who is asked for how many guesses, what is charged for them, what `auto` learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from greenllm.core import (
    Chunk,
    DraftPass,
    InvalidRequestError,
    Request,
    Speculation,
    SpeculativeMethod,
)
from greenllm.engine.native import NativeEngine
from greenllm.shape import ModelShape
from greenllm.speculation.drafter import Drafter
from greenllm.speculation.speculator import OFF, PromptLookup, Speculator, arms
from tests.fake_engine import make_engine, make_request, make_runner

SMALL = ModelShape(10, 10, 1, 4, 8)


@dataclass
class Guesser:
    """A drafter that says `token_id` over and over, and remembers whom it was asked about."""

    token_id: int = 1
    shape: ModelShape | None = SMALL
    asked: list[list[tuple[str, int]]] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)
    passes: Sequence[DraftPass] = ()
    fails: bool = False
    before: Callable[[Chunk], None] = lambda chunk: None

    def prepare(self, num_tokens: int) -> None:
        """Note it."""
        self.prepared.append(num_tokens)

    def draft(self, chunks: Sequence[Chunk], *, whole: bool = False) -> list[tuple[int, ...]]:
        """As many as fit."""
        if self.fails:
            raise RuntimeError("out of guesses")
        for chunk in chunks:
            self.before(chunk)
        self.asked.append([(chunk.seq.request.request_id, chunk.room) for chunk in chunks])
        self.passes = [DraftPass((chunk,), chunk.room) for chunk in chunks]
        return [(self.token_id,) * chunk.room for chunk in chunks]


def ended(engine: NativeEngine) -> dict[str, Any]:
    """Run to the end; receipts by request."""
    receipts = []
    while engine.has_work:
        engine.step()
        receipts += engine.settle()
    return {receipt.request_id: receipt for receipt in [*receipts, *engine.drain()]}


@pytest.fixture
def speculative() -> Callable[..., NativeEngine]:
    """Builds an engine whose drafters guess."""

    def make(default: Speculation = OFF, **drafters: Guesser | PromptLookup) -> NativeEngine:
        return make_engine(speculator=Speculator(drafters, default))  # type: ignore[arg-type]

    return make


def ask(request: Request, method: SpeculativeMethod | None, num_tokens: int = 3) -> Request:
    """The request, speculating as told."""
    return replace(request, speculation=method and Speculation(method, num_tokens))


def test_each_method_is_asked_about_its_own_requests(
    speculative: Callable[..., NativeEngine],
) -> None:
    early, model = Guesser(), Guesser()
    engine = speculative(Speculation("early_exit", 2), early_exit=early, draft_model=model)
    methods: dict[str, SpeculativeMethod | None] = {"a": None, "b": "draft_model", "c": "off"}
    for name, method in methods.items():
        engine.add_request(ask(make_request(name, [1] * 3, max_tokens=8), method))
    engine.step()
    assert early.asked == model.asked == []
    engine.step()
    assert early.asked == [[("a", 2)]]
    assert model.asked == [[("b", 3)]]


class Untouched(Speculator):
    """Fails when a step asks it anything."""

    def begin(self, batch_size: int) -> None:
        raise AssertionError("nobody speculates")

    def num_drafts(self, seq: Any) -> int:
        raise AssertionError("nobody speculates")


def test_nobody_is_asked_while_nobody_speculates() -> None:
    engine = make_engine(speculator=Untouched({"early_exit": Guesser()}))
    engine.add_request(make_request("a", [1] * 3, max_tokens=4, ignore_eos=True))
    engine.add_request(ask(make_request("b", [1] * 3, max_tokens=4), "off"))
    assert ended(engine)["a"].completion_tokens == 4
    engine.add_request(ask(make_request("c", [1] * 3), "early_exit"))
    with pytest.raises(AssertionError, match="nobody speculates"):
        engine.step()


@pytest.mark.parametrize("token_id", [0, 1, 2, 3])
def test_guesses_change_no_token_and_are_on_the_bill(
    token_id: int, speculative: Callable[..., NativeEngine]
) -> None:
    def answers(engine: NativeEngine) -> dict[str, list[int | None]]:
        found: dict[str, list[int | None]] = {"a": [], "b": []}
        for name in found:
            engine.add_request(make_request(name, [2, len(name)], max_tokens=20, seed=4))
        while engine.has_work:
            for token in engine.step():
                found[token.request_id].append(token.token_id)
        return found

    drafter = Guesser(token_id)
    engine = speculative(Speculation("early_exit", 3), early_exit=drafter)
    assert answers(engine) == answers(speculative())
    receipts = {receipt.request_id: receipt for receipt in engine.drain()}
    for receipt in receipts.values():
        assert 0 <= receipt.accepted_tokens <= receipt.drafted_tokens
        assert receipt.drafted_tokens > 0
        parts = [receipt.prefill_j, receipt.decode_j, receipt.draft_j]
        assert all(part is not None and part > 0 for part in parts)
        assert sum(part or 0.0 for part in parts) == pytest.approx(receipt.active_j)
    stats = engine.stats()
    assert stats.drafted_tokens == sum(r.drafted_tokens for r in receipts.values())
    assert stats.accepted_tokens == sum(r.accepted_tokens for r in receipts.values())
    assert engine.account.totals.residual < 1e-9


def test_looking_up_the_prompt_costs_no_draft_joules(
    speculative: Callable[..., NativeEngine],
) -> None:
    engine = speculative(Speculation("prompt_lookup", 4), prompt_lookup=PromptLookup())
    engine.add_request(make_request("a", [1, 2, 3, 1, 2, 3, 1, 2], max_tokens=6))
    receipt = ended(engine)["a"]
    assert receipt.draft_j == 0


def test_a_method_that_is_not_there_is_refused_by_name(
    speculative: Callable[..., NativeEngine],
) -> None:
    engine = speculative(early_exit=Guesser())
    engine.check(ask(make_request("a", [1]), "early_exit"))
    engine.check(ask(make_request("a", [1]), "auto"))
    with pytest.raises(InvalidRequestError, match="draft_model is not available") as caught:
        engine.check(ask(make_request("a", [1]), "draft_model"))
    assert caught.value.param == "speculative.method"


@pytest.mark.parametrize("num_tokens", [0, -1, 17])
def test_numbers_out_of_range_are_refused(num_tokens: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"must be in \[1, 16\]") as caught:
        Speculation("prompt_lookup", num_tokens)
    assert caught.value.param == "speculative.num_tokens"


def test_everything_auto_may_choose_is_prepared(speculative: Callable[..., NativeEngine]) -> None:
    early, model = Guesser(), Guesser()
    engine = speculative(early_exit=early, draft_model=model)
    engine.prepare(ask(make_request("a", [1]), "auto"))
    engine.prepare(ask(make_request("b", [1]), "early_exit", 7))
    engine.prepare(ask(make_request("b", [1]), "early_exit", 3))
    engine.prepare(make_request("c", [1]))
    assert set(early.prepared) == {2, 4}, "auto and clients make it prepare a bounded few"
    assert sorted(model.prepared) == [4, 8]
    counts: dict[SpeculativeMethod, tuple[int, ...]] = {
        "prompt_lookup": (10,),
        "early_exit": (2, 5),
        "draft_model": (5, 10),
    }
    wanted = [OFF, *(Speculation(m, n) for m, ns in counts.items() for n in ns)]
    assert arms(counts, 5) == wanted


def test_auto_tries_what_is_there_and_learns_from_its_own_steps_only() -> None:
    drafters: dict[SpeculativeMethod, Drafter] = {
        "early_exit": Guesser(),
        "draft_model": Guesser(),
    }
    hopeless: dict[SpeculativeMethod, str] = {"draft_model": "it is too large"}
    speculator = Speculator(drafters, Speculation("auto", 4), hopeless=hopeless)
    speculator.prepare(Speculation("auto", 4))
    assert drafters["draft_model"].prepared == []  # type: ignore[attr-defined]
    engine = make_engine(speculator=speculator)
    engine.add_request(make_request("a", [1, 1], max_tokens=44, ignore_eos=True))
    ended(engine)
    seen = {arm.choice: arm.num_steps for arm in engine.stats().arms[1]}
    assert seen[OFF] > 0
    assert set(seen) == set(arms(("early_exit",), 4))
    assert any(steps for choice, steps in seen.items() if choice != OFF)

    engine.add_request(ask(make_request("b", [1, 1], max_tokens=20), "off"))
    ended(engine)
    assert {arm.choice: arm.num_steps for arm in engine.stats().arms[1]} == seen


def test_a_drafter_that_fails_costs_its_guesses_only(
    speculative: Callable[..., NativeEngine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = speculative(Speculation("early_exit", 3), early_exit=Guesser(fails=True))
    engine.add_request(make_request("a", [1, 1], max_tokens=4, ignore_eos=True))
    receipt = ended(engine)["a"]
    assert (receipt.outcome, receipt.completion_tokens) == ("completed", 4)
    assert receipt.drafted_tokens == 0
    assert "early_exit failed" in caplog.text


def test_what_a_drafter_read_before_it_failed_is_charged_once(
    speculative: Callable[..., NativeEngine],
) -> None:
    """Whoever it was read for may be gone by then, with its bill."""
    drafter = Guesser()
    engine = speculative(Speculation("early_exit", 3), early_exit=drafter)
    engine.add_request(make_request("gone", [1, 1, 1], max_tokens=2, ignore_eos=True))
    batch = engine.scheduler.schedule()
    drafter.passes, drafter.fails = [DraftPass(batch.chunks)], True
    assert ended(engine)["gone"].outcome == "completed"
    engine.add_request(make_request("next", [1, 1], max_tokens=4, ignore_eos=True))
    receipt = ended(engine)["next"]
    assert receipt.outcome == "completed"
    assert receipt.flops < engine.runner.shape.flops(0, 40, 40)


def test_who_had_to_be_read_pays_for_the_reading() -> None:
    engine = make_engine()
    for name in ("a", "b"):
        engine.add_request(make_request(name, [1, 2, 3], max_tokens=4))
    batch = engine.scheduler.schedule()
    first, second = (replace(chunk, num_tokens=1) for chunk in batch.chunks)
    read = replace(first, num_tokens=500, samples=False)
    passes = [DraftPass((read,)), DraftPass((second,), 2)]
    engine.account.charge_draft([first, second], passes, SMALL, 0.3)
    for name in ("a", "b"):
        engine.abort(name)
    receipts = {receipt.request_id: receipt for receipt in engine.drain()}
    one, other = receipts["a"], receipts["b"]
    assert one.flops == SMALL.flops(0, 500, 0)
    assert other.flops == SMALL.flops(0, 1, 1) + SMALL.flops(1, 1, 1)
    assert (one.resident_s, other.resident_s) == pytest.approx((0.1, 0.2))


def test_a_block_is_copied_before_guesses_are_written_over_it() -> None:
    """Room may be the very block that a newcomer's beginning is copied from: free, and oldest."""
    runner = make_runner(8, 4)
    speculator = Speculator({"early_exit": Guesser(before=runner.scribble)})
    engine = make_engine(runner, speculator=speculator)
    engine.add_request(make_request("decoding", [7], max_tokens=20, ignore_eos=True))
    engine.step()
    for name, prompt in (("source", [1, 1, 1, 1, 2]), ("younger", [2] * 20)):
        engine.add_request(make_request(name, prompt, max_tokens=1))
        engine.step()
    speculator.default = Speculation("early_exit", 4)
    engine.add_request(make_request("newcomer", [1, 1, 9], max_tokens=1))
    engine.step()
    receipts = {receipt.request_id: receipt for receipt in engine.drain()}
    assert receipts["newcomer"].cached_tokens == 2
    assert receipts["decoding"].drafted_tokens == 4
    assert receipts["newcomer"].outcome == "completed"
