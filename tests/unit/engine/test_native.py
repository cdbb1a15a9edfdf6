"""The engine: one turn after the other, a receipt for everyone, and failures that stay local."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from greenllm.core import (
    Batch,
    Encode,
    InvalidRequestError,
    Sample,
    SamplingParams,
    Sequence,
    Speculation,
    Token,
)
from greenllm.energy.meters.protocol import NullMeter, Reading, SensorError
from greenllm.energy.receipt import Receipt
from greenllm.engine.blocks import BlockManager
from greenllm.engine.native import NativeEngine
from greenllm.runner.base import Runner
from greenllm.speculation.speculator import PromptLookup, Speculator
from greenllm.text import TextStream
from tests.fake_engine import alone, letters, make_engine, make_request, make_runner


def run(engine: NativeEngine) -> tuple[list[Token], dict[str, Receipt]]:
    """Turn the crank to the end; a receipt that comes twice is an error."""
    tokens: list[Token] = []
    receipts: list[Receipt] = []
    for _ in range(500):
        if not engine.has_work:
            break
        tokens += engine.step()
        receipts += engine.settle()
    receipts += engine.drain()
    assert not engine.has_work
    assert len({receipt.request_id for receipt in receipts}) == len(receipts)
    return tokens, {receipt.request_id: receipt for receipt in receipts}


def ids(tokens: list[Token], request_id: str, index: int = 0) -> list[int]:
    mine = [token for token in tokens if (token.request_id, token.index) == (request_id, index)]
    return [token.token_id for token in mine if token.token_id is not None]


def fails_on(*request_ids: str) -> Callable[[Batch], None]:
    """A device that cannot take certain requests."""

    def on_run(batch: Batch) -> None:
        if any(chunk.seq.request.request_id in request_ids for chunk in batch.chunks):
            raise MemoryError("device is full")

    return on_run


def test_answers_are_those_of_the_model_alone() -> None:
    engine = make_engine(max_num_seqs=3, max_batch_tokens=5)
    requests = [
        make_request("a", [1] * 9, max_tokens=6, n=2),
        make_request("b", [1] * 9, [2, 3], max_tokens=4, logprobs=0),
        make_request("c", [4], max_tokens=0),
    ]
    for request in requests:
        engine.check(request)
        engine.add_request(request)
    tokens, receipts = run(engine)
    for request in requests:
        for index, (generated, reason, _) in enumerate(alone(request)):
            mine = [t for t in tokens if (t.request_id, t.index) == (request.request_id, index)]
            assert ids(tokens, request.request_id, index) == generated
            assert mine[-1].finish_reason == reason
            scored = [token.logprob.token_id for token in mine if token.logprob]
            assert scored == (generated if request.request_id == "b" else [])
    assert {receipt.outcome for receipt in receipts.values()} == {"completed"}
    assert set(receipts) == {"a", "b", "c"}


def test_receipts_carry_tokens_joules_and_grams() -> None:
    engine = make_engine()
    engine.add_request(make_request("first", [1] * 9, max_tokens=3, ignore_eos=True, n=2))
    _, first = run(engine)
    engine.add_request(make_request("again", [1] * 9, max_tokens=3, ignore_eos=True))
    _, again = run(engine)
    one, two = first["first"], again["again"]
    assert (one.prompt_tokens, one.cached_tokens, one.completion_tokens) == (9, 0, 6)
    assert (two.prompt_tokens, two.cached_tokens, two.completion_tokens) == (9, 8, 3)
    assert (one.status, one.method, one.measured) == ("final", "measured:fake", True)
    for receipt in (one, two):
        assert receipt.total_j is not None
        assert receipt.total_j > 0
        assert receipt.operational_g == pytest.approx(receipt.total_j / 3.6e6 * 360)
        assert receipt.intensity_source == "test"
        assert receipt.duration_s > 0
        assert receipt.active_j == pytest.approx((receipt.prefill_j or 0) + (receipt.decode_j or 0))
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.completion_tokens) == (18, 8, 9)
    assert stats.totals.requests_j == pytest.approx((one.total_j or 0) + (two.total_j or 0))
    assert stats.totals.open_j == pytest.approx(0)
    assert stats.totals.residual < 1e-6
    assert stats.num_violations == stats.num_sensor_errors == 0


def test_work_that_only_encodes_is_refused_by_name() -> None:
    request = replace(make_request("a", [1] * 9), work=Encode())
    with pytest.raises(InvalidRequestError, match="embeddings are not served yet"):
        make_engine().check(request)


def test_work_that_only_encodes_would_be_charged_as_a_prefill() -> None:
    """As an answer of no tokens is: no joules per token, rather than 0."""
    receipts: list[Receipt] = []
    for work in (Encode(), SamplingParams(max_tokens=0)):
        engine = make_engine()
        engine.add_request(replace(make_request("a", [1] * 9, [2] * 5), work=work))
        tokens, found = run(engine)
        assert [token.token_id for token in tokens] == [None, None]
        receipts.append(found["a"])
    encoded, unanswered = receipts
    assert encoded == unanswered
    assert (encoded.outcome, encoded.completion_tokens) == ("completed", 0)
    assert encoded.prompt_tokens == 14
    assert encoded.prefill_j is not None
    assert encoded.prefill_j > 0
    assert encoded.active_j == pytest.approx(encoded.prefill_j)
    assert (encoded.decode_j, encoded.draft_j, encoded.joules_per_token) == (0, 0, None)


def test_stats_follow_the_work() -> None:
    engine = make_engine(max_num_seqs=1)
    idle = engine.stats()
    assert (idle.num_waiting, idle.num_running, idle.num_steps) == (0, 0, 0)
    assert idle.num_blocks == idle.num_free_blocks == 32
    engine.add_request(make_request("a", [1] * 5, ignore_eos=True))
    engine.add_request(make_request("b", [2] * 5))
    engine.step()
    busy = engine.stats()
    assert (busy.num_waiting, busy.num_running, busy.num_steps) == (1, 1, 1)
    assert busy.num_free_blocks == 30
    assert busy.completion_tokens == 0
    run(engine)
    assert engine.stats().num_free_blocks == 32
    assert idle.num_steps == 0


def test_the_prefix_cache_can_be_switched_off() -> None:
    engine = make_engine(prefix_cache=False)
    for name in ("a", "b"):
        engine.add_request(make_request(name, [1] * 9))
        _, receipts = run(engine)
        assert receipts[name].cached_tokens == 0


def test_text_stops_at_a_stop_string() -> None:
    plain = make_request("a", [1, 2], ignore_eos=True)
    text = "".join(chr(ord("a") + token_id) for token_id in alone(plain)[0][0])
    stop = text[3:5]
    engine = make_engine()
    engine.add_request(make_request("a", [1, 2], ignore_eos=True, stop=(stop,)))
    tokens, _ = run(engine)
    assert "".join(token.text for token in tokens) == text.partition(stop)[0]
    assert tokens[-1].finish_reason == "stop"


def test_a_failing_runner_ends_only_the_requests_of_its_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = make_engine(make_runner(on_run=fails_on("bad")), max_num_seqs=1)
    good = make_request("good", [1, 2, 3])
    engine.add_request(make_request("bad", [4, 5], [6], n=2))
    engine.add_request(good)
    tokens, receipts = run(engine)
    failed = [token for token in tokens if token.request_id == "bad"]
    assert sorted(token.index for token in failed) == [0, 1, 2, 3]
    assert {token.finish_reason for token in failed} == {"error"}
    assert {token.error for token in failed} == {"MemoryError: device is full"}
    assert {token.token_id for token in failed} == {None}
    assert ids(tokens, "good") == alone(good)[0][0]
    assert receipts["bad"].outcome == "failed"
    assert receipts["bad"].status == "final"
    assert (receipts["bad"].total_j or 0) > 0
    assert receipts["good"].outcome == "completed"
    assert engine.stats().num_free_blocks == 32
    assert "step failed" in caplog.text


class Spoilt:
    """A runner that says of one request's second token that it is no number."""

    def __init__(self, runner: Runner, request_id: str, index: int) -> None:
        self._runner = runner
        self._bad = (request_id, index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, batch: Batch) -> list[Sample]:
        samples = self._runner.run(batch)
        for place, chunk in enumerate(batch.chunks):
            seq = chunk.seq
            if (seq.request.request_id, seq.index) == self._bad and seq.num_generated == 1:
                samples[place] = Sample(error="not a number")
        return samples


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_an_error_of_one_row_ends_its_whole_request_and_no_other(
    caplog: pytest.LogCaptureFixture, index: int
) -> None:
    """Siblings that run, wait or have ended are part of the request."""
    engine = make_engine(Spoilt(make_runner(), "bad", index), max_num_seqs=6)
    good = make_request("good", [1, 2, 3])
    engine.add_request(make_request("bad", [4, 5], [6], n=2, ignore_eos=True))
    engine.add_request(good)
    tokens, receipts = run(engine)
    failed = [token for token in tokens if token.request_id == "bad" and token.finish_reason]
    assert sorted(token.index for token in failed) == [0, 1, 2, 3]
    assert {(t.finish_reason, t.error, t.token_id) for t in failed} == {
        ("error", "not a number", None)
    }
    assert ids(tokens, "good") == alone(good)[0][0]
    assert [receipts[name].outcome for name in ("bad", "good")] == ["failed", "completed"]
    assert receipts["bad"].status == "final"
    assert (receipts["bad"].total_j or 0) > 0
    assert engine.stats().num_free_blocks == 32
    assert engine.stats().num_violations == 0
    assert "request bad failed: not a number" in caplog.text


class Choking:
    """A text that fails at its second token, where the request's stop string says so."""

    stopped = False

    def __init__(self, params: SamplingParams) -> None:
        self._fails = "choke" in params.stop
        self._num_tokens = 0

    def push(self, token_id: int) -> tuple[str, ...]:
        self._num_tokens += 1
        if self._fails and self._num_tokens == 2:
            raise UnicodeError("no such text")
        return (str(token_id),)

    def flush(self) -> tuple[str, ...]:
        return ()


def refuses_to_choke(params: SamplingParams) -> TextStream:
    if "choke" in params.stop:
        raise UnicodeError("no such text")
    return letters(params)


def chokes_while_drafting(seq: Sequence) -> int:
    if "choke" in seq.sampling.stop and seq.num_generated > 1:
        raise UnicodeError("no such text")
    return 0


def break_text(engine: NativeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._in_flight, "text_stream", Choking)


def break_queue(engine: NativeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._in_flight, "text_stream", refuses_to_choke)


def break_drafts(engine: NativeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.scheduler, "_num_drafts", chokes_while_drafting)


def break_admission(engine: NativeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its blocks have been taken, and before they are the sequence's."""
    real = BlockManager.match_part

    def match_part(blocks: BlockManager, token_ids: SequenceOf[int], parent: bytes) -> Any:
        if token_ids[-1] == 7:
            raise UnicodeError("no such text")
        return real(blocks, token_ids, parent)

    monkeypatch.setattr(BlockManager, "match_part", match_part)


@pytest.mark.parametrize("break_", [break_text, break_queue, break_drafts, break_admission])
def test_what_fails_in_the_work_of_one_request_ends_it_alone(
    monkeypatch: pytest.MonkeyPatch, break_: Callable[..., None]
) -> None:
    """Queued, scheduled or read: one terminal answer, one receipt, and the books are right."""
    engine = make_engine(max_num_seqs=6)
    engine.add_request(make_request("before", [1] * 9, max_tokens=1))
    _, earlier = run(engine)
    break_(engine, monkeypatch)
    good = [make_request(f"good {n}", [1, 2, n], ignore_eos=True) for n in range(3)]
    bad = make_request("bad", [1] * 9 + [7], [6, 7], n=2, stop=("choke",), ignore_eos=True)
    tokens: list[Token] = []
    for request in [*good[:2], bad, *good[2:]]:
        tokens += engine.add_request(request)
    more, receipts = run(engine)
    tokens += more
    ends = [token for token in tokens if token.request_id == "bad" and token.finish_reason]
    assert sorted(token.index for token in ends) == [0, 1, 2, 3]
    assert {(t.finish_reason, t.error) for t in ends} == {("error", "UnicodeError: no such text")}
    assert receipts["bad"].outcome == "failed"
    for request in good:
        assert ids(tokens, request.request_id) == alone(request)[0][0]
        assert receipts[request.request_id].outcome == "completed"
    stats = engine.stats()
    assert stats.num_free_blocks == 32
    assert stats.num_violations == 0
    assert stats.totals.open_j == pytest.approx(0)
    spent_j = sum(receipt.total_j or 0 for receipt in (*earlier.values(), *receipts.values()))
    assert spent_j == pytest.approx(stats.totals.requests_j)


def test_what_cannot_be_learnt_ends_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    speculator = Speculator({"prompt_lookup": PromptLookup()}, Speculation("prompt_lookup"))
    engine = make_engine(speculator=speculator)
    monkeypatch.setattr(Speculator, "learn", lambda *step: 1 / 0)
    request = make_request("a", [1, 2, 3])
    engine.add_request(request)
    tokens, receipts = run(engine)
    assert ids(tokens, "a") == alone(request)[0][0]
    assert receipts["a"].outcome == "completed"
    assert "ZeroDivisionError" in caplog.text


def test_a_request_fails_though_a_sibling_has_answered() -> None:
    engine = make_engine(Spoilt(make_runner(), "bad", 1), max_num_seqs=1)
    engine.add_request(make_request("bad", [4, 5], [6], ignore_eos=True))
    tokens, receipts = run(engine)
    assert [t.finish_reason for t in tokens if t.finish_reason] == ["length", "error"]
    assert receipts["bad"].outcome == "failed"


def test_what_a_request_spent_before_it_failed_is_on_its_bill() -> None:
    batches: list[Batch] = []

    def on_run(batch: Batch) -> None:
        batches.append(batch)
        if len(batches) == 4:
            raise RuntimeError("kernel died")

    engine = make_engine(make_runner(on_run=on_run))
    engine.add_request(make_request("a", [1, 2, 3], ignore_eos=True))
    engine.add_request(make_request("b", [1, 2, 3], ignore_eos=True))
    tokens, receipts = run(engine)
    assert len(batches) == 4
    assert len(ids(tokens, "a")) == len(ids(tokens, "b")) == 3
    assert {receipt.outcome for receipt in receipts.values()} == {"failed"}
    assert {receipt.completion_tokens for receipt in receipts.values()} == {3}
    assert all((receipt.decode_j or 0) > 0 for receipt in receipts.values())
    assert engine.stats().num_steps == 3


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_abort(steps: int) -> None:
    engine = make_engine(max_batch_tokens=4, max_num_seqs=3)
    engine.add_request(make_request("a", [1] * 7, n=2, max_tokens=20, ignore_eos=True))
    engine.add_request(make_request("b", [2] * 3, ignore_eos=True))
    sent: list[Token] = []
    for _ in range(steps):
        sent += engine.step()
    ended = engine.abort("a")
    assert [(token.index, token.finish_reason) for token in ended] == [(0, "abort"), (1, "abort")]
    assert engine.abort("a") == engine.abort("unknown") == []
    tokens, receipts = run(engine)
    assert not any(token.request_id == "a" for token in tokens)
    assert len(ids([*sent, *tokens], "b")) == 8
    assert receipts["a"].outcome == "aborted"
    assert receipts["a"].completion_tokens == len(ids(sent, "a")) + len(ids(sent, "a", 1))
    assert ((receipts["a"].total_j or 0) > 0) == (steps > 0)
    assert receipts["b"].outcome == "completed"
    assert engine.stats().num_free_blocks == 32


def test_abort_of_a_finished_request_is_ignored() -> None:
    engine = make_engine()
    engine.add_request(make_request("a", [1, 2], max_tokens=1))
    engine.step()
    assert engine.abort("a") == []
    _, receipts = run(engine)
    assert receipts["a"].outcome == "completed"


@pytest.mark.parametrize(
    ("prompts", "sampling", "param", "message"),
    [
        ([], {}, "prompt", "no prompt"),
        ([[]], {}, "prompt", "empty"),
        ([[1], []], {}, "prompt", "empty"),
        ([[1, 8]], {}, "prompt", r"\[0, 8\)"),
        ([[-1, 1]], {}, "prompt", r"\[0, 8\)"),
        ([[1] * 64], {"max_tokens": 1}, "prompt", "64 tokens, the context is 64"),
        ([[1] * 65], {"max_tokens": 0}, "prompt", "65 tokens"),
        ([[1], [1] * 60], {"max_tokens": 5}, "max_tokens", r"prompt \(60\) and max_tokens \(5\)"),
        ([[1]] * 513, {"n": 2}, "prompt", "1026 choices asked for, at most 1024"),
        ([[1]], {"logit_bias": {8: 1.0}}, "logit_bias", r"\[0, 8\)"),
        ([[1]], {"logit_bias": {-1: 1.0}}, "logit_bias", r"\[0, 8\)"),
        ([[1]], {"stop_token_ids": (3, 8)}, "stop_token_ids", r"\[0, 8\)"),
        ([[1]], {"stop_token_ids": (-2,)}, "stop_token_ids", r"\[0, 8\)"),
    ],
)
def test_check_refuses_by_parameter(
    prompts: list[list[int]], sampling: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        make_engine().check(make_request("r", *prompts, **sampling))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ([0, 7], {"logit_bias": {0: 1.0, 7: -1.0}, "stop_token_ids": (0, 7)}),
        ([1] * 63, {"max_tokens": 1}),
        ([1] * 64, {"max_tokens": 0}),
        ([1] * 4, {"max_tokens": 60}),
    ],
)
def test_what_passes_the_check_is_served_to_the_end(
    prompt: list[int], sampling: dict[str, Any]
) -> None:
    engine = make_engine(make_runner(num_blocks=16, block_size=4))
    assert engine.info.context_length == 64
    request = make_request("r", prompt, **sampling)
    engine.check(request)
    engine.add_request(request)
    _, receipts = run(engine)
    assert receipts["r"].outcome == "completed"


def test_without_a_sensor_receipts_are_unmetered() -> None:
    engine = make_engine(meter=NullMeter)
    engine.add_request(make_request("a", [1, 2]))
    _, receipts = run(engine)
    assert receipts["a"].status == "unmetered"
    assert (receipts["a"].total_j, receipts["a"].operational_g) == (None, None)


class MoodyMeter(NullMeter):
    """Ten watts; refuses to be read while it is `silent`."""

    method = "measured:moody"
    silent = False

    def read(self) -> Reading:
        now_s = super().read().at_s
        if self.silent:
            raise SensorError("moody: not now")
        return Reading(now_s, {"cpu": 10.0 * now_s})


def test_a_silent_sensor_makes_a_provisional_receipt_first() -> None:
    engine = make_engine(meter=MoodyMeter)
    meter = engine.account.meter
    assert isinstance(meter, MoodyMeter)
    engine.add_request(make_request("a", [1, 2], max_tokens=2, ignore_eos=True))
    meter.silent = True
    receipts: list[Receipt] = []
    for _ in range(500):
        if engine.has_work:
            engine.step()
        receipts += engine.settle()
        meter.silent = not receipts
    statuses = [(receipt.request_id, receipt.status) for receipt in receipts]
    assert statuses == [("a", "provisional"), ("a", "final")]
    assert (receipts[1].total_j or 0) > 0
    assert receipts[1].operational_g is not None
    assert engine.stats().num_sensor_errors > 0
    assert engine.settle_in_s() is None


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 3), min_size=1, max_size=8),
            st.integers(0, 6),
            st.integers(1, 2),
            st.sampled_from(["stays", "stays", "leaves", "breaks"]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 3),
    st.integers(0, 8),
)
def test_everyone_gets_one_receipt_and_the_joules_add_up(
    clients: list[tuple[list[int], int, int, str]], max_num_seqs: int, patience: int
) -> None:
    breaking = [str(number) for number, client in enumerate(clients) if client[3] == "breaks"]
    runner = make_runner(num_blocks=8, block_size=2, on_run=fails_on(*breaking))
    engine = make_engine(runner, max_num_seqs=max_num_seqs, max_batch_tokens=4)
    for number, (prompt, max_tokens, n, _) in enumerate(clients):
        engine.add_request(make_request(str(number), prompt, max_tokens=max_tokens, n=n))
    early: list[Receipt] = []
    for _ in range(patience):
        if engine.has_work:
            engine.step()
        early += engine.settle()
    for number, client in enumerate(clients):
        if client[3] == "leaves":
            engine.abort(str(number))
    _, receipts = run(engine)
    everyone = [*early, *receipts.values()]
    assert sorted(receipt.request_id for receipt in everyone) == sorted(
        map(str, range(len(clients)))
    )
    assert all(receipt.status == "final" for receipt in everyone)
    for receipt in everyone:
        may_be = {
            "stays": {"completed", "failed"},
            "leaves": {"completed", "aborted", "failed"},
            "breaks": {"failed"},
        }[clients[int(receipt.request_id)][3]]
        assert receipt.outcome in may_be
        event(receipt.outcome)
    stats = engine.stats()
    assert stats.num_free_blocks == 8
    assert sum(receipt.total_j or 0 for receipt in everyone) == pytest.approx(
        stats.totals.requests_j
    )
    assert stats.totals.residual < 1e-6
    assert stats.num_violations == 0
