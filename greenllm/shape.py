"""What one token of a model costs, in FLOPs and bytes. Not covered: mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What one token costs a model, in FLOPs and KV bytes.

    `body_parameters` take part for every token (no embedding table, no head), `head_parameters`
    for every token whose logits are computed. FLOPs: 2 per parameter and token, plus
    4 * layers * attention width per token and token of context (Kaplan et al., arXiv:2001.08361).
    """

    body_parameters: int
    head_parameters: int
    num_layers: int
    attention_width: int
    kv_bytes_per_token: int

    @property
    def num_parameters(self) -> int:
        """All that a decoded token reads."""
        return self.body_parameters + self.head_parameters

    def first(self, num_layers: int) -> ModelShape:
        """The model cut off after its first layers, with its head; layers count alike."""
        return replace(
            self,
            body_parameters=round(self.body_parameters * num_layers / self.num_layers),
            num_layers=num_layers,
            kv_bytes_per_token=round(self.kv_bytes_per_token * num_layers / self.num_layers),
        )

    def flops(self, start: int, num_tokens: int, num_logits: int) -> float:
        """FLOPs of `num_tokens` tokens from position `start` on."""
        context = num_tokens * start + num_tokens * (num_tokens + 1) / 2
        attention = 4 * self.num_layers * self.attention_width * context
        body, head = 2 * self.body_parameters, 2 * self.head_parameters
        return body * num_tokens + head * num_logits + attention

    def kv_bytes(self, start: int, num_tokens: int) -> float:
        """Bytes of keys and values read and written."""
        return float(self.kv_bytes_per_token * (start + 2 * num_tokens))
