"""What a decoder computes, read from its config.json: sizes, biases, norms, rotary angles.

`spec_of` knows Llama (SmolLM too), Mistral, Qwen2, Qwen3 and Phi-3. Everything in a config that
would change the arithmetic in a way not described here raises `UnknownArchitectureError` with the
reason, so that a graph is never built for what it does not compute. No torch, no transformers.

Not covered: mixtures of experts, YaRN and LongRoPE angles, logit soft-capping, attention sinks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from greenllm.core import GreenllmError
from greenllm.shape import ModelShape

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PLAIN_ANGLES = frozenset({"default", "linear", "llama3"})


class UnknownArchitectureError(GreenllmError):
    """The graph builder does not know this model; the message says what it stumbled over."""


@dataclass(frozen=True, slots=True)
class Projection:
    """One group of linear layers that read the same input: module names and output widths."""

    group: str
    in_features: int
    modules: tuple[tuple[str, int], ...]

    @property
    def out_features(self) -> int:
        """Width of all outputs side by side."""
        return sum(width for _, width in self.modules)


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer with rotary positions, RMS norms and a gated SiLU MLP.

    `windows[i]` is the sliding window of layer i, 0 for none. `inverse_frequencies` are radians per
    position, one for each pair of rotated dimensions. `biased_groups` names the projections whose
    modules all have a bias.
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    inverse_frequencies: tuple[float, ...]
    windows: tuple[int, ...]
    tied: bool
    has_head_norms: bool
    is_fused: bool
    biased_groups: frozenset[str]

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The linear layers of one decoder layer, in the order they run."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        qkv = (
            (("self_attn.qkv_proj", query + 2 * key),)
            if self.is_fused
            else (
                ("self_attn.q_proj", query),
                ("self_attn.k_proj", key),
                ("self_attn.v_proj", key),
            )
        )
        gate_up = (
            (("mlp.gate_up_proj", 2 * inner),)
            if self.is_fused
            else (("mlp.gate_proj", inner), ("mlp.up_proj", inner))
        )
        return (
            Projection("qkv", hidden, qkv),
            Projection("out", query, (("self_attn.o_proj", hidden),)),
            Projection("gate_up", hidden, gate_up),
            Projection("down", inner, (("mlp.down_proj", hidden),)),
        )

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors that take part; a tied head is the token table."""
        found: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_layers):
            found |= self._layer_tensors(f"model.layers.{layer}")
        found["model.norm.weight"] = (self.hidden_size,)
        if not self.tied:
            found[HEAD] = (self.vocab_size, self.hidden_size)
        return found

    def _layer_tensors(self, prefix: str) -> dict[str, tuple[int, ...]]:
        norms = ("input_layernorm", "post_attention_layernorm")
        found: dict[str, tuple[int, ...]] = {
            f"{prefix}.{norm}.weight": (self.hidden_size,) for norm in norms
        }
        if self.has_head_norms:
            for norm in ("q_norm", "k_norm"):
                found[f"{prefix}.self_attn.{norm}.weight"] = (self.head_dim,)
        for projection in self.projections:
            for module, width in projection.modules:
                found[f"{prefix}.{module}.weight"] = (width, projection.in_features)
                if projection.group in self.biased_groups:
                    found[f"{prefix}.{module}.bias"] = (width,)
        return found

    @property
    def lora_targets(self) -> dict[str, tuple[int, int]]:
        """Module paths an adapter may name, with (in_features, out_features)."""
        return {
            f"model.layers.{layer}.{module}": (projection.in_features, width)
            for layer in range(self.num_layers)
            for projection in self.projections
            for module, width in projection.modules
        }

    def shape(self, kv_bytes_per_token: int) -> ModelShape:
        """What a token costs; linear layers only, as norms and biases are negligible."""
        body = sum(p.in_features * p.out_features for p in self.projections)
        return ModelShape(
            body_parameters=body * self.num_layers,
            head_parameters=self.hidden_size * self.vocab_size,
            num_layers=self.num_layers,
            attention_width=self.num_heads * self.head_dim,
            kv_bytes_per_token=kv_bytes_per_token,
        )


def spec_of(config: Mapping[str, Any]) -> DecoderSpec:
    """Read a config.json.

    Raises:
        UnknownArchitectureError: it describes something this module does not.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise UnknownArchitectureError(f"model type {family!r} is not one of {', '.join(FAMILIES)}")
    _refuse_surprises(config)
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or _usual_head_dim(config, family, heads))
    layers = int(config["num_hidden_layers"])
    return DecoderSpec(
        family=family,
        num_layers=layers,
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        vocab_size=int(config["vocab_size"]),
        context_length=int(config.get("max_position_embeddings") or 2048),
        norm_eps=float(config.get("rms_norm_eps", 1e-5 if family == "phi3" else 1e-6)),
        inverse_frequencies=_inverse_frequencies(config, head_dim),
        windows=_windows(config, family, layers),
        tied=bool(config.get("tie_word_embeddings", False)),
        has_head_norms=family == "qwen3",
        is_fused=family == "phi3",
        biased_groups=_biased_groups(config, family),
    )


def _biased_groups(config: Mapping[str, Any], family: str) -> frozenset[str]:
    """Where each family has biases; what its modules do not look at in a config changes nothing."""
    groups = {"qkv"} if family == "qwen2" else set()
    if family in ("llama", "qwen3") and config.get("attention_bias"):
        groups |= {"qkv", "out"}
    if family == "llama" and config.get("mlp_bias"):
        groups |= {"gate_up", "down"}
    return frozenset(groups)


def _usual_head_dim(config: Mapping[str, Any], family: str, heads: int) -> int:
    """What transformers takes when a config does not say."""
    return 128 if family == "qwen3" else int(config["hidden_size"]) // heads


def _refuse_surprises(config: Mapping[str, Any]) -> None:
    """Name what the graph would get wrong."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnknownArchitectureError(f"activation {activation!r} is not SiLU")
    if config.get("quantization_config"):
        raise UnknownArchitectureError("the checkpoint is already quantized")
    partial = _rope(config).get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UnknownArchitectureError(f"only a part ({partial}) of each head is rotated")
    kind = _rope_type(config)
    if kind not in _PLAIN_ANGLES:
        raise UnknownArchitectureError(f"rotary scaling {kind!r} is not supported")
    if config.get("transformers_weights"):
        raise UnknownArchitectureError("the config names weight files of its own")
    if config.get("rope_interleaved"):
        raise UnknownArchitectureError("interleaved rotary dimensions are not supported")


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary parameters, under transformers 5's name or the older one."""
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def _rope_type(config: Mapping[str, Any]) -> str:
    rope = _rope(config)
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _inverse_frequencies(config: Mapping[str, Any], head_dim: int) -> tuple[float, ...]:
    """Radians per position of each rotated pair, scaled as the config asks."""
    rope = _rope(config)
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    plain = [theta ** (-index / head_dim) for index in range(0, head_dim, 2)]
    kind = _rope_type(config)
    if kind == "linear":
        return tuple(value / float(rope["factor"]) for value in plain)
    if kind == "llama3":
        return tuple(_llama3_frequency(value, rope) for value in plain)
    return tuple(plain)


def _llama3_frequency(value: float, rope: Mapping[str, Any]) -> float:
    """Llama 3.1's scaling: long waves are stretched, short ones kept, a ramp between them."""
    factor = float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    turns = original * value / (2 * math.pi)
    if turns > high:
        return value
    if turns < low:
        return value / factor
    share = (turns - low) / (high - low)
    return (1 - share) * value / factor + share * value


def _windows(config: Mapping[str, Any], family: str, layers: int) -> tuple[int, ...]:
    """Sliding windows per layer, 0 where a layer sees everything, by each family's own rules.

    What a config leaves out is what transformers takes then.
    """
    if family == "llama":
        return (0,) * layers
    usual = None if family == "phi3" else 4096
    window = int(config.get("sliding_window", usual) or 0)
    if family in ("mistral", "phi3"):
        return (window,) * layers
    kinds = config.get("layer_types") or ()
    if not config.get("use_sliding_window"):
        if "sliding_attention" in kinds:
            raise UnknownArchitectureError("layer_types and use_sliding_window contradict")
        return (0,) * layers
    if kinds:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    first = int(config.get("max_window_layers", 28))
    return tuple(window if layer >= first else 0 for layer in range(layers))
