"""One step of a model that can be run again and again from the same state.

Contract: a decoding step puts one token of each sequence after `prompt_tokens` in the cache of
transformers; a prefill puts whole prompts into an empty one, and computes logits of each last token
only, where the model can. Tokens are random, from a fixed seed, and have no padding.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from evals.profiling.config import ProfileConfig
from evals.profiling.counts import AttentionShape
from evals.profiling.parts import ProfileError

_SEED = 7


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

    def attention_shapes(self, past: list[int]) -> list[AttentionShape]:
        """Each layer's attention in the step that has run; `past` is what was there before.

        Raises:
            ProfileError: layers share keys and values.
        """
        layers = self.cache.layers
        if len(layers) != self._text.num_hidden_layers:
            kind = type(self._model).__name__
            raise ProfileError(f"{kind} cannot be profiled: its layers share keys and values")
        past = past or [0] * len(layers)
        return [
            AttentionShape(
                batch=self._ids.shape[0],
                new_tokens=self._ids.shape[1],
                past=before,
                heads=self._text.num_attention_heads,
                kv_heads=layer.keys.shape[1],
                key_dim=layer.keys.shape[-1],
                value_dim=layer.values.shape[-1],
                element_bytes=layer.keys.element_size(),
            )
            for before, layer in zip(past, layers, strict=True)
        ]


def _length(keys: Tensor | None) -> int:
    return 0 if keys is None else keys.shape[-2]
