"""Encoding, splitting and counting, with a tokenizer of one id a character."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.dataset import load_data, prepare
from finetune.data.encoding import Encoder
from finetune.data.examples import DataError, DataLine, example_of
from finetune.recipe import Recipe

END = "~"


class Characters:
    """A tokenizer whose template writes `role:content~`."""

    eos_token, eos_token_id = END, ord(END)
    chat_template = "yes"

    def __init__(self, special: tuple[str, ...] = ()) -> None:
        self.special = special

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [1] if text in self.special else [ord(c) for c in text]}

    def apply_chat_template(
        self, messages: Any, *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        text = "".join(f"{m['role'][0]}:{m['content']}{END}\n" for m in messages)
        return text + ("a:" if add_generation_prompt else "")


def make(**options: Any) -> Recipe:
    return Recipe(**{"data": "d", "output": Path("o"), **options})


def said(ids: tuple[int, ...]) -> str:
    return "".join(map(chr, ids))


def prompt(i: int, answer: str = "yes") -> DataLine:
    return example_of(f"f:{i}", {"prompt": f"question {i}", "completion": answer})


def encode(example: DataLine, *, templated: bool = True) -> tuple[str, str]:
    """All of it, and what of it is learnt."""
    found = Encoder(Characters(), templated=templated).encode(example)
    learnt = tuple(i for i, flag in zip(found.ids, found.learnt, strict=True) if flag)
    return said(found.ids), said(learnt)


def test_only_the_answer_and_its_end_are_learnt() -> None:
    assert encode(prompt(1)) == ("u:question 1~\na:yes~", "yes~")
    assert encode(prompt(1), templated=False) == ("question 1yes~", "yes~")
    assert encode(example_of("f:1", {"text": "abc"})) == ("abc~", "abc~")


def test_every_answer_of_a_conversation_is_learnt_unless_it_weighs_nothing() -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "one", "weight": 0},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "two"},
    ]
    whole, learnt = encode(example_of("f:1", {"messages": turns}))
    assert whole == "s:S~\nu:1~\na:one~\nu:2~\na:two~"
    assert learnt == "two~"


def test_the_prompt_is_what_comes_before_the_last_answer() -> None:
    found = Encoder(Characters(), templated=True).encode(prompt(1))
    assert said(found.prompt_ids) == "u:question 1~\na:"


def test_data_written_for_another_template_is_refused() -> None:
    example = example_of("f:3", {"text": "<|im_start|>user hello"})
    with pytest.raises(DataError, match=r"f:3 holds <\|im_start\|>, which is no token"):
        Encoder(Characters(), templated=True).encode(example)
    own = Encoder(Characters(special=("<|im_start|>",)), templated=True)
    assert own.encode(example).num_learnt > 0


class Forgetful(Characters):
    """A template that shows only the last turn, as some reasoning templates do."""

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return super().apply_chat_template(messages[-1:], **options)


def test_a_template_that_rewrites_turns_is_refused() -> None:
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "1"), ("assistant", "a"), ("user", "2"), ("assistant", "b"))
    ]
    with pytest.raises(DataError, match="renders a turn differently"):
        Encoder(Forgetful(), templated=True).encode(example_of("f:1", {"messages": turns}))


def prepared(examples: list[DataLine], length: int = 100, **options: Any) -> Any:
    encoder = Encoder(Characters(), templated=True)
    return prepare(make(**options), encoder, length, examples)


def test_doubles_are_left_out_and_counted_with_their_tokens() -> None:
    data = prepared([prompt(i % 5) for i in range(20)], validation_share=0.0)
    assert (data.counts.train, data.counts.doubles) == (5, 15)
    assert data.counts.doubles_tokens == 15 * len(data.train[0].ids)
    kept = prepared([prompt(i % 5) for i in range(20)], deduplicate=False, validation_share=0.0)
    assert (kept.counts.train, kept.counts.doubles) == (20, 0)


def test_long_examples_go_by_the_policy() -> None:
    examples = [prompt(1), prompt(2), prompt(3, "long " * 50), prompt(4)]
    dropped = prepared(examples, validation_share=0.0).counts
    assert (dropped.train, dropped.dropped) == (3, 1)
    cut = prepared(examples, too_long="truncate", validation_share=0.0)
    assert (cut.counts.train, cut.counts.truncated) == (4, 1)
    assert max(len(item.ids) for item in cut.train) == 100
    with pytest.raises(DataError, match=r"f:3 has \d+ tokens, more than 100"):
        prepared(examples, too_long="refuse")


def test_what_is_cut_before_its_answer_is_left_out() -> None:
    long = example_of("f:9", {"prompt": "why " * 50, "completion": "x"})
    counts = prepared([prompt(1), prompt(2), long], too_long="truncate").counts
    assert (counts.truncated, counts.without_answer) == (0, 1)


@pytest.mark.parametrize("examples", [[prompt(1)], [prompt(1), prompt(1)]])
def test_one_example_is_too_few(examples: list[DataLine]) -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        prepared(examples)


@given(st.permutations(range(30)), st.sampled_from([0.0, 0.1, 0.5]))
def test_the_split_depends_on_the_examples_only(order: list[int], share: float) -> None:
    data = prepared([prompt(i) for i in order], validation_share=share)
    held_out = {item.example.where for item in data.validation}
    reference = prepared([prompt(i) for i in range(30)], validation_share=share)
    assert held_out == {item.example.where for item in reference.validation}
    assert data.counts.train + data.counts.validation == 30
    assert data.counts.validation == round(share * 30)


def test_what_is_scored_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        "\n".join(f'{{"prompt": "q{i}", "completion": "a"}}' for i in range(9))
    )
    (tmp_path / "v.jsonl").write_text('{"prompt": "q3", "completion": "a"}')
    recipe = make(data=str(tmp_path / "t.jsonl"), validation=tmp_path / "v.jsonl")
    data = load_data(recipe, Characters(), 100)
    assert (data.counts.train, data.counts.validation, data.counts.doubles) == (8, 1, 1)
    assert "q3" not in {item.example.turns[0].content for item in data.train}


@pytest.mark.parametrize(
    ("train", "validation", "option"),
    [
        ('{"prompt": "a", "completion": "b"}\n{', '{"text": "a"}', "data"),
        ('{"prompt": "a", "completion": "b"}', '{"prompt": "c", "completion": "d"}', "data"),
        ('{"prompt": "a", "completion": "b"}', "", "validation"),
        ('{"text": "a"}', '{"prompt": "[INST]", "completion": "d"}', "validation"),
    ],
)
def test_an_error_says_whose_file_it_is_about(
    tmp_path: Path, train: str, validation: str, option: str
) -> None:
    (tmp_path / "t.jsonl").write_text(train)
    (tmp_path / "v.jsonl").write_text(validation)
    recipe = make(data=str(tmp_path / "t.jsonl"), validation=tmp_path / "v.jsonl")
    with pytest.raises(DataError) as caught:
        load_data(recipe, Characters(), 100)
    assert caught.value.option == option


def test_a_chat_template_is_asked_for_where_there_is_none() -> None:
    class Plain(Characters):
        chat_template = ""

    with pytest.raises(DataError, match="has no chat template"):
        load_data(make(data="example", template="chat"), Plain(), 100)


def preference(i: int, worse: str = "no way") -> DataLine:
    return example_of(f"f:{i}", {"prompt": f"question {i}", "chosen": "yes", "rejected": worse})


@pytest.mark.parametrize("templated", [True, False])
def test_both_answers_of_a_preference_follow_the_same_prompt(templated: bool) -> None:
    found = Encoder(Characters(), templated=templated).encode(preference(1))
    assert found.rejected is not None
    assert found.prompt_ids == found.rejected.prompt_ids
    prompt_text = "u:question 1~\na:" if templated else "question 1"
    assert (said(found.ids), said(found.rejected.ids)) == (
        f"{prompt_text}yes~",
        f"{prompt_text}no way~",
    )
    assert found.num_tokens == len(found.ids) + len(found.rejected.ids)
    assert found.num_learnt == len("yes~") + len("no way~")


def test_preferences_are_told_apart_by_both_answers_and_too_long_by_either() -> None:
    examples = [preference(1), preference(1), preference(1, "never"), preference(2, "no " * 50)]
    counts = prepared(examples, validation_share=0.0, objective="dpo").counts
    assert (counts.train, counts.doubles, counts.dropped) == (2, 1, 1)
    cut = prepared(examples, validation_share=0.0, objective="dpo", too_long="truncate")
    assert cut.counts.truncated == 1
    assert max(item.longest for item in cut.train) == 100


def test_another_templates_marks_are_refused_in_the_worse_answer_too() -> None:
    with pytest.raises(DataError, match=r"\[INST\]"):
        Encoder(Characters(), templated=True).encode(preference(1, "[INST] no"))


@pytest.mark.parametrize(
    ("objective", "row", "reason"),
    [
        ("sft", '{"prompt": "a", "chosen": "b", "rejected": "c"}', "--objective dpo learns"),
        ("dpo", '{"prompt": "a", "completion": "b"}', "needs prompt, chosen and rejected"),
    ],
)
def test_data_for_another_objective_is_refused_by_its_line(
    tmp_path: Path, objective: str, row: str, reason: str
) -> None:
    (tmp_path / "d.jsonl").write_text(f"{row}\n")
    with pytest.raises(DataError, match=rf"d\.jsonl:1.*{reason}"):
        load_data(make(data=str(tmp_path / "d.jsonl"), objective=objective), Characters(), 100)


def test_a_dataset_of_the_hub_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str]] = []

    def hub(name: str, *, split: str) -> list[dict[str, str]]:
        asked.append((name, split))
        return [{"prompt": f"q{i}", "completion": "a"} for i in range(20)]

    monkeypatch.setattr(datasets, "load_dataset", hub)
    data = load_data(make(data="someone/questions"), Characters(), 100)
    assert asked == [("someone/questions", "train")]
    assert (data.counts.train, data.counts.validation) == (18, 2)
    assert data.train[0].example.where.startswith("someone/questions:")


def test_a_name_that_is_neither_file_nor_dataset_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def hub(name: str, *, split: str) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(DataError, match="no/where is no file, and no dataset of the hub: offline"):
        load_data(make(data="no/where"), Characters(), 100)
