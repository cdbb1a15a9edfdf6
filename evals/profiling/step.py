"""One step of a model that can be run again and again from the same state.

Contract: a decoding step puts one token of each sequence after `prompt_tokens` in the cache of
transformers; a prefill puts whole prompts into an empty one, and computes logits of each last token
only, where the model can. Tokens are random, from a fixed seed, and have no padding.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from evals.profiling.config import ProfileConfig
from evals.profiling.parts import ProfileError

_SEED = 7


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """One layer's attention in one step: pairs of a query and a key, and bytes of keys and values.

    `hidden_pairs` are those that causality hides.
    """

    pairs: int
    hidden_pairs: int
    kv_bytes: int


class Step:
    """`prepare` puts everything back, `run` runs; `cache` is that of the last run."""

    def __init__(self, model: PreTrainedModel, config: ProfileConfig) -> None:
        self._model = model
        self._text = model.config.get_text_config()
        size = (config.batch, config.prompt_tokens)
        source = torch.Generator().manual_seed(_SEED)
        ids = torch.randint(self._text.vocab_size, size, generator=source)
        self._ids = ids.to(model.get_input_embeddings().weight.device)
        can = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in can else {}
        self._devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        self.cache = DynamicCache(config=model.config)
        self._before: Iterable[object] | None = None
        if config.phase == "decode":
            self.run()
            self._before = tuple(self.cache.layers)
            self._ids = self._ids[:, :1]

    def prepare(self) -> None:
        """Put the cache back to what it was before the step."""
        self.cache = DynamicCache(config=self._model.config)
        if self._before is not None:
            # Layers replace their tensors and change none, so that copies may share them.
            self.cache.layers = [copy.copy(layer) for layer in self._before]

    @torch.inference_mode()
    def run(self) -> None:
        """Run the step, to its end on every device."""
        self._model(
            input_ids=self._ids, past_key_values=self.cache, use_cache=True, **self._last_only
        )
        self.wait()

    def wait(self) -> None:
        """Wait for the devices that compute on their own."""
        for device in self._devices:
            torch.cuda.synchronize(device)

    def past(self) -> list[int]:
        """Keys of each layer that are there now."""
        return [_length(layer.keys) for layer in self.cache.layers]

    def attention(self, past: list[int]) -> list[AttentionStep]:
        """Each layer's attention in the step that has run; `past` is what was there before.

        Raises:
            ProfileError: layers share keys and values.
        """
        layers, (batch, new) = self.cache.layers, self._ids.shape
        if len(layers) != self._text.num_hidden_layers:
            kind = type(self._model).__name__
            raise ProfileError(f"{kind} cannot be profiled: its layers share keys and values")
        found = []
        for before, layer in zip(past or [0] * len(layers), layers, strict=True):
            # All are read, and the new ones are written.
            token_bytes = sum(tensor[:, :, :1].nbytes for tensor in (layer.keys, layer.values))
            pairs, hidden = new * (before + new), new * (new - 1) // 2
            found.append(
                AttentionStep(batch * pairs, batch * hidden, token_bytes * (before + 2 * new))
            )
        return found


def _length(keys: Tensor | None) -> int:
    return 0 if keys is None else keys.shape[-2]
