"""Graphs for one sequence compute what those of any size do, and touch nobody else's blocks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import transformers

from greenllm.core import AdapterRef, Batch, Chunk, Request, Sample, SamplingParams, sequences_of
from greenllm.model.options import LoadOptions
from greenllm.runner.openvino import single
from greenllm.runner.openvino.constants import Constants
from greenllm.runner.openvino.drafter import UnrolledDrafter
from greenllm.runner.openvino.exit_graphs import ExitGraphs
from greenllm.runner.openvino.graph import GraphOptions, Sizes, build_graph
from greenllm.runner.openvino.inputs import Rotation
from greenllm.runner.openvino.load import KvCacheOptions, load_openvino_runner
from greenllm.runner.openvino.runner import OpenVinoRunner
from greenllm.runner.openvino.single import SingleDecoders
from greenllm.runner.threads import ThreadPlan
from tests.model.driving import LLAMA, VOCABULARY, save
from tests.waiting import PATIENCE_S

EXIT = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of four layers."""
    sizes = {"num_hidden_layers": 4, "max_position_embeddings": 256, "initializer_range": 0.2}
    config = transformers.LlamaConfig(**LLAMA | sizes)
    return save(config, tmp_path_factory.mktemp("single"))


def _load(folder: str) -> OpenVinoRunner:
    return load_openvino_runner(folder, LoadOptions(), KvCacheOptions(2**25, 8))


@pytest.fixture(scope="module")
def plain(folder: str) -> OpenVinoRunner:
    """Without graphs for one sequence."""
    return _load(folder)


@pytest.fixture(scope="module")
def fixed(folder: str) -> OpenVinoRunner:
    """With graphs for one sequence, whose threads have been chosen."""
    built: list[Sizes] = []

    def build(constants: Constants, options: GraphOptions, sizes: Sizes) -> Any:
        built.append(sizes)
        return build_graph(constants, options, sizes=sizes)

    runner = _load(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "build_graph", build)
        runner.use_threads(ThreadPlan.fixed(1))
        runner.prepare_check(4)
    assert {1, 5, 32, 64} <= {sizes.tokens for sizes in built}
    return runner


def _chunk(length: int, num_tokens: int, blocks: list[int], name: str = "a") -> Chunk:
    """The last tokens of a text of so many."""
    prompt = tuple((7 * i + len(name)) % VOCABULARY for i in range(length))
    request = Request(name, (prompt,), SamplingParams(temperature=0), model="")
    (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=250)
    seq.block_table = blocks
    return Chunk(seq, length - num_tokens, num_tokens, samples=True)


def _all_rows(runner: OpenVinoRunner, chunk: Chunk) -> Any:
    return runner.logits([chunk], [range(chunk.num_tokens)]).numpy().copy()


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 6, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("start", [0, 30, 63])
def test_logits_are_those_of_a_graph_of_any_size(
    num_tokens: int, start: int, plain: OpenVinoRunner, fixed: OpenVinoRunner
) -> None:
    size = fixed.block_size
    results = []
    for runner in (plain, fixed):
        blocks = list(range(1, 2 + (start + num_tokens) // size))
        if start:
            runner.run(Batch((_chunk(start, start, blocks),)))
        results.append(_all_rows(runner, _chunk(start + num_tokens, num_tokens, blocks)))
    np.testing.assert_allclose(results[0], results[1], atol=2e-4)


def test_tokens_after_the_end_are_written_where_nobody_reads(fixed: OpenVinoRunner) -> None:
    size = fixed.block_size
    neighbour = _chunk(2 * size, 2 * size, [0, 3], "neighbour")
    before = _all_rows(fixed, neighbour)
    # Three tokens filled up to five run over the end of block 1, the last that it has.
    _all_rows(fixed, _chunk(size, size, [1]))
    _all_rows(fixed, _chunk(size, 3, [1]))
    last = replace(neighbour, start=2 * size - 1, num_tokens=1)
    after = fixed.logits([last], [range(1)]).numpy()
    np.testing.assert_allclose(after[0], before[-1], atol=2e-4)


def _cycle(runner: OpenVinoRunner, *, whole: bool) -> tuple[tuple[int, ...], Sample, bool]:
    """Guesses after a prompt, what their check says, and whether it was there already."""
    found: list[Any] = []

    def checked(drafter: UnrolledDrafter, chunk: Chunk, take: Any = UnrolledDrafter.checked) -> Any:
        found.append(take(drafter, chunk))
        return found[-1]

    blocks = [1, 2]
    runner.run(Batch((_chunk(20, 20, blocks),)))
    drafter = runner.early_exit(EXIT)
    drafter.prepare(3)
    chunk = replace(_chunk(21, 1, blocks), room=3)
    (guesses,) = drafter.draft([chunk], whole=whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnrolledDrafter, "checked", checked)
        (sample,) = runner.run(Batch((chunk.with_draft(guesses),)))
    return guesses, sample, any(logits is not None for logits in found)


def test_a_guess_that_was_checked_at_once_is_judged_alike(fixed: OpenVinoRunner) -> None:
    guesses, sample, was_checked = _cycle(fixed, whole=False)
    assert not was_checked
    assert len(guesses) == 3
    assert _cycle(fixed, whole=True) == (guesses, sample, True)


def test_a_check_of_other_guesses_is_not_taken(fixed: OpenVinoRunner) -> None:
    blocks = [1, 2]
    fixed.run(Batch((_chunk(20, 20, blocks),)))
    drafter = fixed.early_exit(EXIT)
    drafter.prepare(3)
    chunk = replace(_chunk(21, 1, blocks), room=3)
    (guesses,) = drafter.draft([chunk], whole=True)
    others = tuple((guess + 1) % VOCABULARY for guess in guesses)
    found = _all_rows(fixed, chunk.with_draft(others))
    wanted = _all_rows(fixed, replace(chunk.with_draft(others)))
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert drafter.checked(chunk.with_draft(guesses)) is None, "it is used once or never"


def test_an_early_exit_beside_an_adapter_is_checked_with_it(fixed: OpenVinoRunner) -> None:
    drafter = fixed.early_exit(EXIT)
    drafter.prepare(3)
    chunk = replace(_chunk(21, 1, [1, 2]), room=3)
    chunk.seq.request = replace(chunk.seq.request, adapter=AdapterRef("a", "digest"))
    (guesses,) = drafter.draft([chunk], whole=True)
    assert drafter.checked(chunk.with_draft(guesses)) is None


class SlowFactory:
    """Compiles nothing, and not before it is told to; its graphs put out what came in."""

    is_small, block_size, spare_block = True, 32, 9

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def compile_graph(self, build: Any, threads: int) -> Any:
        self.begun.set()
        assert self.go.wait(PATIENCE_S)
        return SimpleNamespace(infer=lambda inputs: inputs["ids"])


@pytest.fixture
def slow() -> tuple[SlowFactory, SingleDecoders]:
    factory = SlowFactory()
    return factory, SingleDecoders(cast(Any, factory), Rotation([1.0]), ThreadPlan.fixed(1))


def _size(decoders: SingleDecoders, num_tokens: int) -> int | None:
    """Of the graph that a step of so many tokens has."""
    found = decoders.logits(_chunk(num_tokens, num_tokens, [0]), range(100))
    return None if found is None else len(found)


def test_two_that_are_prepared_at_once_are_both_kept(
    slow: tuple[SlowFactory, SingleDecoders],
) -> None:
    factory, decoders = slow
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(decoders.prepare, 5)]
        assert factory.begun.wait(PATIENCE_S)
        factory.begun.clear()
        jobs.append(pool.submit(decoders.prepare, 9))
        factory.begun.wait(0.05)  # in which the second would begin if nothing kept it
        factory.go.set()
        for job in jobs:
            job.result(PATIENCE_S)
    assert [_size(decoders, number) for number in (4, 5, 6, 9, 10)] == [5, 5, 9, 9, None]


@pytest.mark.parametrize("kind", ["single", "exits"])
def test_what_is_there_does_not_wait_for_what_others_compile(kind: str) -> None:
    """A request that needs nothing new would be held up by one that does."""
    factory = cast(Any, SlowFactory())
    make = SingleDecoders if kind == "single" else ExitGraphs
    graphs = make(factory, Rotation([1.0]), ThreadPlan.fixed(1))
    factory.go.set()
    graphs.prepare(2)
    factory.begun.clear()
    factory.go.clear()
    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(graphs.prepare, 3)
        assert factory.begun.wait(PATIENCE_S)
        known = pool.submit(graphs.prepare, 2)
        try:
            known.result(PATIENCE_S)
            assert not new.done()
        finally:
            factory.go.set()
        new.result(PATIENCE_S)


def test_an_adapter_has_no_such_graph(slow: tuple[SlowFactory, SingleDecoders]) -> None:
    factory, decoders = slow
    factory.go.set()
    decoders.prepare(4)
    chunk = _chunk(4, 4, [0])
    assert decoders.logits(chunk, range(3, 4)) is not None
    chunk.seq.request = replace(chunk.seq.request, adapter=AdapterRef("a", "digest"))
    assert decoders.logits(chunk, range(3, 4)) is None
