"""The front door on the bundled model: every way to ask gives the same answers, with receipts.

How it ends what it begins is tested in tests/unit/test_inbox.py.
"""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greenllm import LLM, Generation, GreenllmError, SamplingParams
from greenllm.config import ConfigError
from greenllm.core import InvalidRequestError
from greenllm.energy.ledger import Ledger
from greenllm.inbox import EngineStoppedError
from tests.waiting import until

# PEFT asks transformers for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
BUNDLED = Path(__file__).parents[2] / "greenllm" / "model" / "bundled"
GREEDY = SamplingParams(temperature=0, max_tokens=12)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
PROMPT = "Once upon a time"
FOX = [{"role": "user", "content": "Tell me a story about a brave fox."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    """A data folder, with the adapter `north` in it and `south` beside."""
    folder = tmp_path_factory.mktemp("llm")
    make_adapter(BUNDLED, folder / "adapters" / "north", seed=1, std=0.5)
    make_adapter(BUNDLED, folder / "south", seed=2, std=0.5)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    """Shared; at the end its books must balance."""
    options = {"threads": "1", "device": "cpu", "meter": "modelled"}
    with LLM(record=True, data_dir=folder, adapter_dirs=[folder], **options) as llm:
        yield llm
        llm.close()
    ledger = Ledger(folder / "ledger.sqlite", read_only=True)
    (session,) = ledger.sessions()
    spent_j = sum(receipt.total_j or 0.0 for receipt in ledger.receipts())
    assert session.closed
    assert spent_j == pytest.approx(session.totals.requests_j)
    assert session.totals.residual < 1e-9
    ledger.close()


@pytest.fixture(scope="module")
def alone(llm: LLM) -> Generation:
    return llm.generate(PROMPT, GREEDY)


def test_an_answer_has_text_tokens_and_a_final_receipt(llm: LLM, alone: Generation) -> None:
    receipt = alone.receipt
    assert alone.text
    assert len(alone.choices[0].token_ids) == receipt.completion_tokens == 12
    assert alone.choices[0].finish_reason == "length"
    assert (receipt.request_id, receipt.model) == (alone.request_id, llm.name)
    assert (receipt.status, receipt.outcome) == ("final", "completed")
    assert receipt.total_j is not None
    assert receipt.total_j > 0


def test_prompts_of_one_call_have_one_receipt_each(
    llm: LLM, alone: Generation, folder: Path
) -> None:
    prompts: list[str | list[int]] = [PROMPT, "The sun was", [5, 6, 7]]
    answers = llm.generate(prompts, GREEDY)
    assert answers[0].text == alone.text
    assert [a.text for a in answers] == [llm.generate([p], GREEDY)[0].text for p in prompts]
    assert len({answer.receipt.request_id for answer in answers}) == 3
    assert answers[2].receipt.prompt_tokens == 3
    assert llm.generate([]) == []
    ledger = Ledger(folder / "ledger.sqlite", read_only=True)
    assert ledger.receipt(alone.request_id) == alone.receipt
    ledger.close()


def test_a_stream_is_the_whole_answer_in_pieces(llm: LLM, alone: Generation) -> None:
    with llm.stream(PROMPT, GREEDY) as stream:
        pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == alone.text == stream.generation.text
    assert "".join(llm.stream(FOX, GREEDY)) == llm.chat(FOX, GREEDY).text


def test_closing_a_stream_early_ends_the_work(llm: LLM) -> None:
    with llm.stream(PROMPT, LONG) as stream:
        first = next(stream)
    answer = stream.generation
    assert answer.text.startswith(first)
    assert answer.receipt.outcome == "aborted"
    assert answer.receipt.completion_tokens < LONG.max_tokens
    assert list(stream) == []


def test_a_stream_that_nobody_holds_any_more_ends_its_work(llm: LLM, folder: Path) -> None:
    for _ in llm.stream("The last of them", LONG):
        break
    ledger = Ledger(folder / "ledger.sqlite", read_only=True)

    def aborted() -> bool:
        ended = max(ledger.receipts(), key=lambda receipt: receipt.created_s)
        return ended.outcome == "aborted" and ended.completion_tokens < LONG.max_tokens

    until(aborted, "the end of the work")
    ledger.close()


def test_a_token_that_ends_an_answer_is_not_part_of_it(llm: LLM, alone: Generation) -> None:
    """Neither of its text nor of its ids, whether it is the model's own end or the caller's."""
    ids = alone.choices[0].token_ids
    end = next(i for i in range(2, len(ids)) if ids[i] not in ids[:i])
    sampling = replace(GREEDY, stop_token_ids=(ids[end],))
    answer = llm.generate(PROMPT, sampling)
    assert answer.choices[0].token_ids == ids[:end]
    assert answer.receipt.completion_tokens == end + 1


def test_what_is_no_prompt_is_refused(llm: LLM) -> None:
    """By its caller's own error: the engine goes on for the others."""
    wrong: Any
    for wrong in ([5, 6], [[1.5, 2]], [[True]], [None], [[["user", "Hi"]]]):
        with pytest.raises(InvalidRequestError, match="a prompt must be"):
            llm.generate(wrong, GREEDY)
    array: Any = np.array([5, 6, 7])
    assert llm.generate([array], GREEDY)[0].receipt.prompt_tokens == 3


NO_SAMPLING: Any = {"temperature": 0}
NO_ADAPTER: Any = 3
NO_MESSAGES: Any = [{"role": "user", "content": 5}]
HALF = "a\ud800"
MISTAKES: dict[str, tuple[Callable[[LLM, Any], object], Any, str]] = {
    "generate, sampling": (lambda llm, it: llm.generate("a", it), NO_SAMPLING, "sampling"),
    "stream, sampling": (lambda llm, it: llm.stream("a", it), NO_SAMPLING, "sampling"),
    "chat, sampling": (lambda llm, it: llm.chat(FOX, it), NO_SAMPLING, "sampling"),
    "generate, number": (lambda llm, it: llm.generate(it), 5, "prompt"),
    "generate, None": (lambda llm, it: llm.generate(it), None, "prompt"),
    "generate, message": (lambda llm, it: llm.generate(it), FOX[0], "prompt"),
    "generate, surrogate": (lambda llm, it: llm.generate(it), HALF, "prompt"),
    "stream, number": (lambda llm, it: llm.stream(it), 5, "prompt"),
    "stream, None": (lambda llm, it: llm.stream(it), None, "prompt"),
    "generate, adapter": (lambda llm, it: llm.generate("a", adapter=it), NO_ADAPTER, "adapter"),
    "generate, adapters": (lambda llm, it: llm.generate(["a"], adapter=it), [3], "adapter"),
    "chat, adapter": (lambda llm, it: llm.chat(FOX, adapter=it), NO_ADAPTER, "adapter"),
    "chat, content": (lambda llm, it: llm.chat(it), NO_MESSAGES, "messages.0.content"),
    "stream, content": (lambda llm, it: llm.stream(it), NO_MESSAGES, "messages.0.content"),
    "chat, ids": (lambda llm, it: llm.chat(it), [5, 6], "messages.0"),
    "agenerate": (lambda llm, it: asyncio.run(llm.agenerate(it)), 5, "prompt"),
    "achat": (lambda llm, it: asyncio.run(llm.achat(it)), None, "messages"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_caller_s_mistake_is_told_in_a_sentence(llm: LLM, name: str) -> None:
    ask, wrong, param = MISTAKES[name]
    with pytest.raises(InvalidRequestError) as caught:
        ask(llm, wrong)
    assert caught.value.param == param
    assert "\n" not in str(caught.value)


def test_a_conversation_may_be_a_text_or_have_parts(llm: LLM) -> None:
    said = FOX[0]["content"]
    parts = [{"role": "user", "content": [{"type": "text", "text": said}]}]
    assert llm.chat(said, GREEDY).text == llm.chat(parts, GREEDY).text == llm.chat(FOX, GREEDY).text


def test_an_option_that_is_none_of_the_engine_s_is_refused() -> None:
    no_model: Any = None
    with pytest.raises(ConfigError, match="did you mean 'quantize'"):
        LLM("bundled", quantise="int8")
    with pytest.raises(ConfigError, match="unknown option 'port'"):
        LLM("bundled", port=80)
    with pytest.raises(ConfigError, match="not None"):
        LLM(no_model)


def test_what_is_wrong_with_an_adapter_is_said_for_python_callers(
    llm: LLM, folder: Path, tmp_path: Path
) -> None:
    nothing: Any = 3
    mistakes: list[Callable[[], object]] = [
        lambda: llm.generate(PROMPT, adapter="nope"),
        lambda: llm.unload_adapter("nope"),
        lambda: llm.unload_adapter(nothing),
        lambda: llm.load_adapter("south", tmp_path),
        lambda: llm.load_adapter(nothing, folder / "south"),
        lambda: llm.load_adapter("south", nothing),
    ]
    for mistake in mistakes:
        with pytest.raises(GreenllmError) as caught:
            mistake()
        assert not re.search(r"--\w|GET|/v1", str(caught.value))


def test_adapters_are_named_per_call_or_per_prompt(
    llm: LLM, alone: Generation, folder: Path
) -> None:
    llm.load_adapter("south", folder / "south")
    assert [info.name for info in llm.adapters] == ["north", "south"]
    names = [None, "north", "south"]
    answers = llm.generate([PROMPT] * 3, GREEDY, adapter=names)
    assert [answer.receipt.adapter for answer in answers] == names
    assert answers[0].text == alone.text
    assert len({answer.text for answer in answers}) == 3
    assert llm.generate(PROMPT, GREEDY, adapter="north").text == answers[1].text
    llm.unload_adapter("south")
    for wrong in ("south", [None, None]):
        with pytest.raises(GreenllmError, match=r"south|1 prompts, but 2 adapters"):
            llm.generate([PROMPT], GREEDY, adapter=wrong)
    assert [info.in_flight for info in llm.adapters] == [0]


def test_a_prompt_too_long_is_refused_by_its_length(llm: LLM) -> None:
    for ask in (llm.stream, lambda ids: llm.generate([ids])):
        with pytest.raises(GreenllmError, match="100000"):
            ask([5] * 100_000)


def test_threads_and_tasks_get_their_own_answers(llm: LLM, alone: Generation) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(lambda _: llm.generate(PROMPT, GREEDY).text, range(24))
        assert set(texts) == {alone.text}

    async def main() -> None:
        one, several, chat = await asyncio.gather(
            llm.agenerate(PROMPT, GREEDY),
            llm.agenerate([PROMPT, PROMPT], GREEDY),
            llm.achat(FOX, GREEDY),
        )
        assert [one.text, *(a.text for a in several)] == [alone.text] * 3
        assert chat.text == llm.chat(FOX, GREEDY).text
        *pieces, whole = [piece async for piece in llm.astream(PROMPT, GREEDY)]
        assert "".join(map(str, pieces)) == alone.text
        assert isinstance(whole, Generation)
        assert whole.text == alone.text

    asyncio.run(main())


def test_a_left_stream_of_a_task_ends_its_work(llm: LLM) -> None:
    async def main() -> None:
        async for _ in llm.astream(PROMPT, LONG, adapter="north"):
            break

    asyncio.run(main())
    until(lambda: llm.adapters[0].in_flight == 0, "the end of the work")


def test_a_closed_model_leaves_memory(tmp_path: Path) -> None:
    with LLM(threads="1", device="cpu", meter="modelled", data_dir=tmp_path) as llm:
        engine = weakref.ref(llm._engine)
    del llm
    gc.collect()
    assert engine() is None


def test_importing_the_front_door_loads_no_torch() -> None:
    code = "import sys, greenllm, greenllm.llm; assert greenllm.LLM is greenllm.llm.LLM; print("
    code += "sorted({'torch', 'transformers', 'openvino', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_after_closing_nothing_is_answered(llm: LLM) -> None:
    stream = llm.stream(PROMPT, LONG)
    list(islice(stream, 1))
    llm.close()
    llm.close()
    assert stream.generation.receipt.outcome in ("aborted", "completed")
    for refused in (llm.generate, llm.stream, lambda _: llm.chat(FOX)):
        with pytest.raises(EngineStoppedError):
            refused(PROMPT)
