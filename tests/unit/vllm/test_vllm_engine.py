"""The engine over a stand-in for vLLM: every joule on a bill, every answer ended by our rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenllm.core import (
    Grammar,
    InvalidRequestError,
    Request,
    SamplingParams,
    Speculation,
    Token,
)
from greenllm.energy.account.account import Account
from greenllm.energy.carbon.policy import CarbonPolicy
from greenllm.energy.meters.protocol import Reading
from greenllm.energy.receipt import Receipt
from greenllm.model.adapters import AdapterRegistry
from greenllm.model.info import ModelInfo
from greenllm.model.lora_config import AdapterError
from greenllm.model.lora_layout import LoraFacts
from greenllm.shape import ModelShape
from greenllm.vllm.engine import Facts, VllmEngine
from greenllm.vllm.schedule import Journal, Scheduled
from tests.fake_engine import letters, ticking
from tests.sampling_examples import examples

SHAPE = ModelShape(1000, 500, 2, 8, 64)
EOS = 0
INFO = ModelInfo(
    name="m", source="m", architecture="Counts", parameters=1500, weight_bytes=6000,
    quantization="none", dtype="float32", device="cpu", context_length=64, vocab_size=50,
    eos_token_ids=frozenset({EOS}),
)  # fmt: skip


@dataclass
class Queued:
    """A sequence in the stand-in: it answers with the number after its last token."""

    tokens: list[int]
    prompt_len: int
    most: int
    ends: list[int]
    num_computed: int = 0


@dataclass
class Counting:
    """Schedules all, five tokens of a prompt at a time; of two guesses the second is wrong."""

    journal: Journal
    guesses: bool = False
    queued: dict[str, Queued] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    salts: list[str | None] = field(default_factory=list)
    loaded: list[tuple[str, Path]] = field(default_factory=list)
    num_free_blocks: int = 9
    error: Exception | None = None
    ended: Any = None

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        values: Mapping[str, Any],
        adapter: str | None,
        salt: str | None,
    ) -> None:
        self.told.append(dict(values))
        self.salts.append(salt)
        self.queued[name] = Queued(
            list(prompt), len(prompt), values["max_tokens"], values["stop_token_ids"]
        )

    def step(self) -> list[Any]:
        if self.error is not None:
            raise self.error
        if self.ended is not None:
            return [self._output(name, self.ended, ended=True) for name in self.queued]
        found = [self._one(name, one) for name, one in list(self.queued.items())]
        return [output for output in found if output is not None]

    def _one(self, name: str, one: Queued) -> Any:
        left = len(one.tokens) - one.num_computed
        in_decode = one.num_computed >= one.prompt_len
        draft = (one.tokens[-1] + 1, 49) if self.guesses and in_decode else ()
        count = min(5, left)
        self.journal.entries.append(Scheduled(name, one.num_computed, count + len(draft), draft))
        one.num_computed += count
        if one.num_computed < len(one.tokens):
            return None
        new = [one.tokens[-1] + 1 + i for i in range(2 if draft else 1)]
        one.tokens += new
        one.num_computed += len(new) - 1
        generated = len(one.tokens) - one.prompt_len
        ended = generated >= one.most or bool(set(new) & set(one.ends))
        if ended:
            del self.queued[name]
        choice = SimpleNamespace(token_ids=new, logprobs=None, finish_reason=None)
        return self._output(name, choice, ended=ended)

    def _output(self, name: str, choice: Any, *, ended: bool) -> Any:
        return SimpleNamespace(
            request_id=name, outputs=[choice], finished=ended, num_cached_tokens=3,
            prompt_logprobs=None,
        )  # fmt: skip

    def abort(self, names: Sequence[str]) -> None:
        self.aborted += names
        for name in names:
            self.queued.pop(name, None)

    def check_grammar(self, grammar: Grammar) -> None:
        if grammar.source == "{":
            raise InvalidRequestError("no schema", "response_format")

    def load(self, digest: str, name: str, folder: Path) -> None:
        if name == "bad":
            raise AdapterError("vLLM does not take it")
        self.loaded.append((digest, folder))


class Watts:
    """Ten watts."""

    method, measured, period_s, uncertainty = "measured:fake", True, 0.0, 0.05
    lag_s = 0.0
    idle_w: Mapping[str, float] | None = None

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def read(self) -> Reading:
        now_s = self._clock()
        return Reading(now_s, {"cpu": 10.0 * now_s})


Make = Callable[..., tuple[VllmEngine, Counting]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def engine(*, speculation: Speculation | None = None) -> tuple[VllmEngine, Counting]:
        journal, clock = Journal(), ticking(0.01)
        own = speculation or Speculation("off")
        backend = Counting(journal, guesses=own.method != "off")
        account = Account(Watts(clock), SHAPE, clock=clock)
        account.start_serving()
        draft_shape = SHAPE.first(1) if own.method == "draft_model" else None
        facts = Facts(INFO, SHAPE, draft_shape, own, 10)

        def read(folder: Path) -> Any:
            return SimpleNamespace(digest=f"of {folder.name}", num_bytes=4)

        registry = AdapterRegistry(read, lambda _: LoraFacts(1, 1, (), ""), home=tmp_path)
        made = VllmEngine(
            backend, journal, facts, account, CarbonPolicy(None),
            text_stream=letters, clock=clock, adapters=registry,
        )  # fmt: skip
        return made, backend

    return engine


def run(engine: VllmEngine) -> tuple[list[Token], dict[str, Receipt]]:
    tokens: list[Token] = []
    while engine.has_work:
        tokens += engine.step()
    return tokens, {receipt.request_id: receipt for receipt in engine.drain()}


def request(name: str, *prompt: int, **sampling: Any) -> Request:
    values = {"temperature": 0, "max_tokens": 4, **sampling}
    return Request(name, (prompt,), SamplingParams(**values), model="m")


def test_sequences_are_queued_with_their_requests_salt(make: Make) -> None:
    engine, backend = make()
    engine.add_request(replace(request("a", 1, 2), cache_salt="ada"))
    engine.add_request(request("b", 1, 2))
    assert backend.salts == ["ada", None]


def test_steps_are_charged_by_what_was_scheduled(make: Make) -> None:
    engine, _ = make()
    engine.add_request(request("short", 1, 2))
    engine.add_request(request("long", *range(1, 24)))
    tokens, receipts = run(engine)
    said = {name: [t.token_id for t in tokens if t.request_id == name] for name in receipts}
    assert said == {"short": [3, 4, 5, 6], "long": [24, 25, 26, 27]}
    short, long = receipts["short"], receipts["long"]
    assert (long.prompt_tokens, long.completion_tokens, long.cached_tokens) == (23, 4, 3)
    assert (long.prefill_j or 0) > (short.prefill_j or 0) > 0
    totals = engine.stats().totals
    assert totals.residual < 1e-6
    assert totals.requests_j == pytest.approx((short.total_j or 0) + (long.total_j or 0))
    assert totals.open_j == pytest.approx(0)
    assert engine.stats().num_violations == 0


def test_an_answer_that_we_end_is_aborted_there(make: Make) -> None:
    """Token 4's text is `e`."""
    engine, backend = make()
    engine.add_request(request("r", 1, 2, max_tokens=9, stop=("e",)))
    tokens, receipts = run(engine)
    assert [token.token_id for token in tokens] == [3, 4]
    assert tokens[-1].finish_reason == "stop"
    assert "".join(token.text for token in tokens) == "d"
    assert backend.aborted == ["r/0"]
    assert not backend.queued
    assert receipts["r"].completion_tokens == 2


def test_no_tokens_are_none(make: Make) -> None:
    engine, _ = make()
    engine.add_request(request("r", 1, 2, 3, max_tokens=0))
    tokens, receipts = run(engine)
    assert [(token.token_id, token.finish_reason) for token in tokens] == [(None, "length")]
    assert receipts["r"].completion_tokens == 0
    assert (receipts["r"].total_j or 0) > 0


@pytest.mark.parametrize("method", ["prompt_lookup", "draft_model"])
def test_guesses_are_counted_and_a_draft_model_is_charged(make: Make, method: Any) -> None:
    engine, _ = make(speculation=Speculation(method, 2))
    engine.add_request(request("r", 1, 2, max_tokens=7))
    tokens, receipts = run(engine)
    assert [token.token_id for token in tokens] == [3, 4, 5, 6, 7, 8, 9]
    receipt = receipts["r"]
    assert (receipt.drafted_tokens, receipt.accepted_tokens) == (6, 3)
    assert ((receipt.draft_j or 0) > 0) == (method == "draft_model")
    assert receipt.active_j == pytest.approx(
        (receipt.prefill_j or 0) + (receipt.decode_j or 0) + (receipt.draft_j or 0)
    )


def test_what_is_aborted_keeps_its_joules(make: Make) -> None:
    engine, backend = make()
    engine.add_request(request("r", 1, 2, max_tokens=30))
    engine.step()
    (end,) = engine.abort("r")
    assert (end.finish_reason, engine.has_work, backend.queued) == ("abort", False, {})
    assert engine.abort("r") == []
    (receipt,) = engine.drain()
    assert (receipt.outcome, receipt.completion_tokens) == ("aborted", 1)
    assert (receipt.total_j or 0) > 0


def test_what_vllm_ends_by_itself_has_failed(make: Make) -> None:
    """Both choices end, as one request has one outcome; nobody waits for them."""
    engine, backend = make()
    engine.add_request(request("r", 1, 2, n=2, temperature=1, max_tokens=9))
    engine.step()
    backend.ended = SimpleNamespace(token_ids=[], logprobs=None, finish_reason="error")
    tokens = engine.step()
    assert [(t.index, t.token_id, t.finish_reason) for t in tokens] == [
        (0, None, "error"),
        (1, None, "error"),
    ]
    assert tokens[0].error == "vLLM ended it (error)"
    (receipt,) = engine.drain()
    assert (receipt.outcome, receipt.completion_tokens) == ("failed", 2)
    assert not engine.has_work
    assert not backend.queued


def test_a_grammar_is_read_before_a_request_is_queued(make: Make) -> None:
    engine, _ = make()
    engine.prepare(request("r", 1, grammar=Grammar("json_schema", "{}")))
    with pytest.raises(InvalidRequestError, match="no schema"):
        engine.prepare(request("r", 1, grammar=Grammar("json_schema", "{")))


def test_an_adapter_is_loaded_into_vllm_when_it_is_acquired(make: Make, tmp_path: Path) -> None:
    for name in ("fox", "bad"):
        (tmp_path / name).mkdir()
    engine, backend = make()
    ref = engine.adapters.acquire("fox")
    assert backend.loaded == [(ref.digest, tmp_path / "fox")]
    with pytest.raises(AdapterError, match="does not take it"):
        engine.adapters.acquire("bad")
    assert {info.name: info.in_flight for info in engine.adapters.list()} == {"fox": 1, "bad": 0}


def test_choices_are_sequences_of_their_own(make: Make) -> None:
    engine, backend = make()
    engine.add_request(request("r", 1, 2, n=2, temperature=1, max_tokens=2))
    assert set(backend.queued) == {"r/0", "r/1"}
    tokens, receipts = run(engine)
    assert {token.index for token in tokens} == {0, 1}
    assert receipts["r"].completion_tokens == 4
    assert receipts["r"].cached_tokens == 3, "of the prompt, which is counted once"


def test_a_failing_step_ends_the_engine_and_bills_are_kept(make: Make) -> None:
    engine, backend = make()
    engine.add_request(request("r", 1, 2))
    engine.step()
    backend.error = RuntimeError("device lost")
    with pytest.raises(RuntimeError, match="device lost"):
        engine.step()
    (receipt,) = engine.drain("failed")
    assert receipt.outcome == "failed"
    assert not engine.has_work


def test_refusals_come_before_anything_is_queued(make: Make) -> None:
    engine, _ = make()
    with pytest.raises(InvalidRequestError, match="the context is 64"):
        engine.check(request("r", *range(1, 49), *range(1, 49)))
    with pytest.raises(InvalidRequestError, match="one way for all"):
        engine.check(
            Request("r", ((1,),), SamplingParams(), model="m", speculation=Speculation("auto"))
        )
    assert not engine.has_work


@pytest.mark.parametrize("name", [spec.name for spec in fields(SamplingParams)])
def test_each_sampling_parameter_is_applied_or_refused(make: Make, name: str) -> None:
    """By what vLLM is told, or by what becomes of its tokens."""
    assert name in examples(EOS), f"{name} needs an example in tests/sampling_examples.py"
    example = examples(EOS)[name]
    found = [_effect(make, params) for params in (example.without, example.given)]
    assert found[0] != found[1], f"{name} is accepted and ignored"


def _effect(make: Make, params: SamplingParams) -> object:
    engine, backend = make()
    asked = Request("r", ((1, 2, 3),), params, model="m")
    try:
        engine.check(asked)
    except InvalidRequestError as error:
        return error.param
    engine.prepare(asked)
    engine.add_request(asked)
    tokens, _ = run(engine)
    return backend.told, [(token.token_id, token.text, token.finish_reason) for token in tokens]
