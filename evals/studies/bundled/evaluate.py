"""Held-out scores: the share of answers that are right to the letter, by greedy decoding.

Contract: only examples with a part that training never shows are scored, and only those with
one right answer. Not covered: the quality of stories, which no equality can measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from evals.studies.bundled.tokenizer import TURN_END
from evals.tasks.generated.example import Message
from evals.tasks.generated.stories import PROMPTS, with_article
from evals.tasks.generated.tables import TRAITS
from evals.tasks.generated.tasks import held_out_examples, task_names

# No wanted answer is longer: copies of story parts come close.
ANSWER_TOKENS: Final = 200
SAMPLE_QUESTIONS: Final = (
    "Who are you?",
    "Tell me a story about a brave fox.",
    "Write a long story about a shy owl.",
    "What is 47 + 8?",
    "What is the name in: My friend Keloric lives in Oslo.",
    "Format as JSON: Wilanra is 31 years old and lives in Cairo.",
    "Sort the words: river, apple, moon",
    "Table pets (name, animal, owner, age). Which name has the owner Keloric?",
    "Replace river with garden: The boat of Anna is near the river.",
    "Repeat: Please send the lamp to Wilanra in Lima.",
    "Reverse the words: lamp tree boat",
    "Is this positive or negative? The soup was disgusting.",
    "What is the capital of Finland?",
    "What is a joule?",
    "What is 38 + 57?",
    "Explain photosynthesis in detail.",
    "Write a Python function that adds two numbers.",
)


@dataclass(frozen=True)
class Answer:
    """What the model said, and whether it ended its turn by itself."""

    text: str
    stopped: bool


@dataclass(frozen=True)
class Score:
    """How many of the held-out examples of one task were answered exactly."""

    task: str
    right: int
    asked: int


def chat_text(tokenizer: PreTrainedTokenizerFast, prompt: tuple[Message, ...]) -> str:
    """The prompt in the chat layout, ready for the assistant's turn."""
    turns = [{"role": message.role, "content": message.content} for message in prompt]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return cast(str, text)


def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[tuple[Message, ...]],
    limit: int,
) -> list[Answer]:
    """Greedy answers; one that does not stop by itself is cut at `limit` tokens."""
    tokenizer.padding_side = "left"
    texts = [chat_text(tokenizer, prompt) for prompt in prompts]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    ids = cast(torch.Tensor, inputs["input_ids"])
    mask = cast(torch.Tensor, inputs["attention_mask"])
    with torch.inference_mode():
        output = cast(
            torch.Tensor,
            model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False),
        )
    end = tokenizer.convert_tokens_to_ids(TURN_END)
    rows = [cast("list[int]", row[ids.shape[1] :].tolist()) for row in output]
    return [Answer(tokenizer.decode(row, skip_special_tokens=True), end in row) for row in rows]


def score_task(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: str, size: int, seed: int
) -> Score:
    """The exact-match score of one task."""
    examples = held_out_examples(task, size, seed)
    if not examples:
        return Score(task, 0, 0)
    given = answers(model, tokenizer, [example.prompt for example in examples], limit=ANSWER_TOKENS)
    right = sum(
        answer.stopped and answer.text == example.answer
        for answer, example in zip(given, examples, strict=True)
    )
    return Score(task, right, len(examples))


def score_all(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, size: int, seed: int
) -> tuple[Score, ...]:
    """The scores of every task that can be scored."""
    model.eval()
    scores = (score_task(model, tokenizer, task, size, seed) for task in task_names())
    return tuple(score for score in scores if score.asked)


def finished_stories(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, limit: int = 300
) -> Score:
    """How many of a fixed set of stories end by themselves, with a full stop."""
    model.eval()
    heroes = [f"{with_article(trait)} rabbit" for trait, _ in TRAITS]
    prompts = [
        (Message("user", PROMPTS[index % len(PROMPTS)].format(hero=hero)),)
        for index, hero in enumerate(heroes)
    ]
    told = answers(model, tokenizer, prompts, limit)
    ended = sum(answer.stopped and answer.text.endswith(".") for answer in told)
    return Score("story_ends_by_itself", ended, len(told))


def sample_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, str]]:
    """What the model says to a fixed set of questions, some of them beyond it."""
    prompts = [(Message("user", question),) for question in SAMPLE_QUESTIONS]
    given = answers(model, tokenizer, prompts, limit=300)
    return [
        {"question": question, "answer": answer.text}
        for question, answer in zip(SAMPLE_QUESTIONS, given, strict=True)
    ]
