"""Training a model so that it can be left early: the loss of layerskip.

The exits are layers whose hidden state, through the model's own last norm and head, is to say what
the whole model says. Their mean cross-entropy joins that of the last layer. Source: Elhoushi et
al., LayerSkip, arXiv:2404.16710; layers are not skipped at random here, so that a fine-tune of a
few hundred steps does not unlearn.

Not covered: models without a final norm before the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finetune.recipe import Recipe
from finetune.train.trainer import GreenTrainer, cross_entropy
from greenllm.config import ConfigError

_NORMS = ("norm", "final_layernorm", "ln_f")


class ExitHeads:
    """A model's exits: numbers of layers after which it may be left."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        decoder = base.get_decoder()
        names = [name for name in _NORMS if hasattr(decoder, name)]
        if not names:
            raise ConfigError(
                f"--objective layerskip: {type(base).__name__} has no final norm that is known",
                "objective",
            )
        self.layers = tuple(layers)
        self._norm = getattr(decoder, names[0])
        self._head = base.get_output_embeddings()

    def logits(self, hidden_states: Sequence[torch.Tensor], layer: int) -> torch.Tensor:
        """What the model would say after a layer."""
        state = self._norm(hidden_states[layer])
        found: torch.Tensor = self._head(state.to(next(self._head.parameters()).dtype))
        return found


def exit_layers(wanted: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The exits to train: those asked for, or a third and half of the layers.

    Raises:
        ConfigError: one is not inside the model.
    """
    chosen = tuple(wanted) or tuple(
        dict.fromkeys((max(1, num_layers // 3), max(1, num_layers // 2)))
    )
    for layer in chosen:
        if not 1 <= layer < num_layers:
            raise ConfigError(f"--exits {layer} must be in [1, {num_layers - 1}]", "exits")
    return chosen


def exits_of(recipe: Recipe, model: Any) -> ExitHeads:
    """The exits that a recipe trains."""
    return ExitHeads(model, exit_layers(recipe.exits, int(model.config.num_hidden_layers)))


class ExitTrainer(GreenTrainer):
    """Adds the exits' loss to that of the last layer; shown and scored is the sum."""

    def __init__(self, *, exits: ExitHeads, exit_weight: float, **given: Any) -> None:
        self._exits, self._exit_weight = exits, exit_weight
        super().__init__(**given)

    def plain_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The sum."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        out = model(**inputs, output_hidden_states=True, use_cache=False)
        parts = [
            cross_entropy(self._exits.logits(out.hidden_states, layer), labels)
            for layer in self._exits.layers
        ]
        total = cross_entropy(out.logits, labels) + self._exit_weight * torch.stack(parts).mean()
        return self.per_token(total, labels, kwargs.get("num_items_in_batch"))
