"""Learning from a larger model: its whole word on every learnt token, beside the data's.

The loss is `w T² KL(teacher || model) + (1 - w) cross-entropy`, in TRL's supervised trainer.
Source: Hinton et al., arXiv:1503.02531. What the teacher draws is a phase of its own on the bill.

Not covered: teachers with another vocabulary; answers that the model itself makes up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.recipe import Recipe
from finetune.train.model import TorchDevice
from finetune.train.trainer import IGNORED, GreenTrainer, cross_entropy
from greenllm.config import ConfigError
from greenllm.model.files import check_folder, local_folder
from greenllm.model.info import LoadError
from greenllm.model.options import resolve


def load_teacher(recipe: Recipe, device: TorchDevice, tokenizer: Any) -> Any | None:
    """The recipe's teacher, frozen, in the arithmetic of the run; None where there is none.

    Raises:
        LoadError: it cannot be loaded.
        ConfigError: it has another vocabulary.
    """
    if recipe.teacher is None:
        return None
    source = resolve(recipe.teacher)
    check_folder(source, allow_pickle=False)
    folder = local_folder(source)
    try:
        vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=device.dtype)
    except Exception as error:
        raise LoadError(f"--teacher: cannot load {recipe.teacher}: {error}") from error
    if vocabulary != tokenizer.get_vocab():
        raise ConfigError(
            f"--teacher {recipe.teacher} has another vocabulary than {recipe.model}: a teacher"
            " must be of the same family",
            "teacher",
        )
    return model.to(device.name).eval().requires_grad_(False)


class DistillTrainer(GreenTrainer):
    """Adds the teacher's word to that of the data."""

    def __init__(self, *, teacher: Any, weight: float, temperature: float, **given: Any) -> None:
        self._teacher, self._weight, self._temperature = teacher, weight, temperature
        super().__init__(**given)

    def plain_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The weighted sum."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        heard = self._ask(inputs, is_training=model.training)
        logits = model(**inputs, use_cache=False).logits
        divergence = _divergence(heard / self._temperature, logits / self._temperature, labels)
        total = self._weight * self._temperature**2 * divergence
        total = total + (1 - self._weight) * cross_entropy(logits, labels)
        return self.per_token(total, labels, kwargs.get("num_items_in_batch"))

    @torch.no_grad()
    def _ask(self, inputs: Any, *, is_training: bool) -> torch.Tensor:
        """What the teacher says, on its own phase of the bill where the model is trained."""
        if not is_training:
            return self._said(inputs)
        with self._watch.account.during("teacher"):
            return self._said(inputs)

    def _said(self, inputs: Any) -> torch.Tensor:
        logits: torch.Tensor = self._teacher(**inputs, use_cache=False).logits
        if logits.is_cuda:  # what is still queued would be booked to the next phase
            torch.cuda.synchronize(logits.device)
        return logits


def _divergence(teacher: torch.Tensor, student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Kullback and Leibler's, summed over learnt tokens."""
    # Models of one family may pad their vocabularies to different sizes.
    size = min(teacher.shape[-1], student.shape[-1])
    learnt = labels[:, 1:] != IGNORED
    heard, said = (
        functional.log_softmax(part[:, :-1, :size][learnt].float(), dim=-1)
        for part in (teacher, student)
    )
    return functional.kl_div(said, heard, reduction="sum", log_target=True)
