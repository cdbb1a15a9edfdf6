"""From examples to token ids, and which of them are learnt: what the model itself would say.

Contract: a conversation is rendered by the tokenizer's own chat template, turn by turn, so that
training sees what the server will render; only the assistant's words and the mark that ends them
are learnt. A text is learnt whole, its end included.

Not covered: templates that render a turn differently once others follow (refused).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.data.examples import DataError, DataLine, Turn

# What other models' templates mark turns with: as plain text it teaches a model nonsense.
_MARKERS = (
    "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>",
    "<|start_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|endoftext|>", "<<SYS>>",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example; `learnt` says of each whether it counts in the loss.

    Of a preference these are the better answer's; `rejected` is the same prompt with the worse.
    `answer_at` is where the last answer begins, if it is there, whole, and learnt.
    """

    example: DataLine
    ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    rejected: Encoded | None = None
    answer_at: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed, both answers' of a preference."""
        return len(self.ids) + (self.rejected.num_tokens if self.rejected else 0)

    @property
    def longest(self) -> int:
        """Length of the longest row."""
        return max(len(self.ids), len(self.rejected.ids) if self.rejected else 0)

    @property
    def num_learnt(self) -> int:
        """Tokens that count in the loss."""
        return sum(self.learnt) + (self.rejected.num_learnt if self.rejected else 0)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What comes before the last answer; nothing where none can be asked for."""
        return self.ids[: self.answer_at or 0]

    def cut(self, length: int) -> Encoded:
        """Its first tokens."""
        rejected = self.rejected.cut(length) if self.rejected else None
        answer_at = self.answer_at if len(self.ids) <= length else None
        return Encoded(self.example, self.ids[:length], self.learnt[:length], rejected, answer_at)


class Encoder:
    """Encodes examples with one tokenizer; `templated` puts prompts into its chat template."""

    def __init__(self, tokenizer: Any, *, templated: bool) -> None:
        self._tokenizer = tokenizer
        self._templated = templated
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no eos_token: nothing would teach where to stop")
        self._foreign = [marker for marker in _MARKERS if len(self._ids(marker)) > 1]

    def encode(self, example: DataLine) -> Encoded:
        """Ids and what of them is learnt.

        Raises:
            DataError: it is written for another template, or the template cannot render it.
        """
        self._refuse_foreign(example)
        found = self._encode(example)
        if example.rejected is None:
            return found
        worse = (*example.turns[:-1], Turn("assistant", example.rejected, True))
        return replace(found, rejected=self._encode(replace(example, turns=worse, rejected=None)))

    def _encode(self, example: DataLine) -> Encoded:
        if example.form == "text":
            return self._joined(example, "", example.answer)
        is_plain = example.form in ("prompt", "preference") and len(example.turns) == 2
        if is_plain and not self._templated:
            prompt, answer = (turn.content for turn in example.turns)
            return self._joined(example, prompt, answer)
        return self._conversation(example)

    def _joined(self, example: DataLine, prompt: str, answer: str) -> Encoded:
        """A plain prompt, its answer and the end."""
        ended = [*self._ids(answer), self._tokenizer.eos_token_id]
        return _encoded(example, [(self._ids(prompt), False), (ended, True)])

    def _conversation(self, example: DataLine) -> Encoded:
        parts: list[tuple[list[int], bool]] = []
        done = ""
        for number, turn in enumerate(example.turns):
            if turn.role != "assistant":
                continue
            before = self._render(example, example.turns[:number], prompted=True)
            after = self._render(example, example.turns[: number + 1], prompted=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise DataError(
                    f"{example.where}: the chat template renders a turn differently once others"
                    " follow; give prompt and completion with --template none instead"
                )
            answer, rest = self._split(after[len(before) :])
            parts += [(self._ids(before[len(done) :]), False), (self._ids(answer), turn.learn)]
            done = after[: len(after) - len(rest)]
        return _encoded(example, parts)

    def _split(self, rendered: str) -> tuple[str, str]:
        """An answer up to its end mark, and what the template puts after it."""
        mark = self._tokenizer.eos_token
        end = rendered.find(mark)
        if end < 0:
            return rendered + mark, ""
        return rendered[: end + len(mark)], rendered[end + len(mark) :]

    def _render(self, example: DataLine, turns: Sequence[Turn], *, prompted: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompted
            )
        except Exception as error:
            raise DataError(f"{example.where}: the chat template refuses it: {error}") from error
        return text

    def _refuse_foreign(self, example: DataLine) -> None:
        for text in (*(turn.content for turn in example.turns), example.rejected or ""):
            marker = next((mark for mark in self._foreign if mark in text), None)
            if marker is not None:
                raise DataError(
                    f"{example.where} holds {marker}, which is no token of this model: the data is"
                    " written for another template; give plain messages instead"
                )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _encoded(example: DataLine, parts: Sequence[tuple[list[int], bool]]) -> Encoded:
    ids = tuple(token for part, _ in parts for token in part)
    learnt = tuple(flag for part, flag in parts for _ in part)
    last, is_learnt = parts[-1]
    is_asked = is_learnt and example.form != "text"
    return Encoded(example, ids, learnt, answer_at=len(ids) - len(last) if is_asked else None)
