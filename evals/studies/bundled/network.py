"""The layers of a small Llama as plain functions, fast to train on a processor.

Contract: the same arithmetic as transformers' LlamaForCausalLM over the same parameters, but with
packed rows, layers that may be skipped, and the hidden state of any layer. Products run in the
dtype of the mask, sums in float32. `compiled` fuses the element-wise work; without a compiler the
functions run as they are. Not covered: caches, biases, rotary scaling, devices other than the CPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from evals.studies.bundled.packing import Batch

HEAD: Final = 64
EPSILON: Final = 1e-6
THETA: Final = 10_000.0


@dataclass(frozen=True)
class Shape:
    """The sizes that differ between the model and its draft."""

    layers: int
    hidden: int
    heads: int
    inner: int


@dataclass(frozen=True)
class Frame:
    """What all layers share for one batch: who sees whom, and the rotary tables."""

    mask: Tensor
    cosines: Tensor
    sines: Tensor


Parts = tuple[Tensor, ...]
P = ParamSpec("P")
R = TypeVar("R")
LayerFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Parts], Tensor]


def new_model(shape: Shape, vocabulary: int, ends: tuple[int, int]) -> LlamaForCausalLM:
    """An untrained model; every linear layer reads a multiple of 64 values."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=1,
        head_dim=HEAD,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ends[0],
        pad_token_id=ends[1],
    )
    model = LlamaForCausalLM(config)
    _scale_outputs(model, (2 * shape.layers) ** -0.5)
    return model


def _scale_outputs(model: LlamaForCausalLM, factor: float) -> None:
    """Let every layer start near the identity, so that depth costs no stability."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(factor)
            layer.mlp.down_proj.weight.mul_(factor)


def layer_parts(layer: torch.nn.Module) -> Parts:
    """The parameters of one layer, in the order in which `apply_layer` reads them."""
    attention, mlp = cast(torch.nn.Module, layer.self_attn), cast(torch.nn.Module, layer.mlp)
    modules = (
        layer.input_layernorm,
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        layer.post_attention_layernorm,
        mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    )  # fmt: skip
    return tuple(cast(Tensor, cast(torch.nn.Module, module).weight) for module in modules)


def make_frame(batch: Batch, dtype: torch.dtype) -> Frame:
    """Mask and rotary tables of a batch."""
    length = batch.ids.shape[1]
    same = batch.owner[:, :, None] == batch.owner[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(same.shape, dtype=dtype).masked_fill_(~(same & causal), float("-inf"))
    rates = THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
    angles = batch.positions[:, None, :, None] * torch.cat((rates, rates))
    return Frame(mask[:, None], angles.cos().to(dtype), angles.sin().to(dtype))


def normalise(x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square normalisation."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions on heads."""
    left, right = x.chunk(2, -1)
    return x * cosines + torch.cat((-right, left), -1) * sines


def _attend(x: Tensor, mask: Tensor, cosines: Tensor, sines: Tensor, parts: Parts) -> Tensor:
    """Attention with one shared key-value head, whose queries fold into one matrix."""
    joint = torch.cat(parts[:3]).to(mask.dtype)
    width = parts[0].shape[0]
    q, k, v = torch.split(functional.linear(x, joint), [width, HEAD, HEAD], -1)
    heads = torch.unflatten(q, -1, (width // HEAD, HEAD)).transpose(1, 2)
    q = _rotate(heads, cosines, sines).to(mask.dtype)
    k = _rotate(k[:, None], cosines, sines).to(mask.dtype)
    folded = q.flatten(1, 2) @ k[:, 0].transpose(1, 2)
    scores = torch.unflatten(folded, 1, (q.shape[1], -1))
    shares = torch.softmax(scores.float() * HEAD**-0.5 + mask, -1).to(mask.dtype)
    mixed = torch.unflatten(shares.flatten(1, 2) @ v, 1, (q.shape[1], -1))
    return functional.linear(mixed.transpose(1, 2).flatten(2), parts[3].to(mask.dtype))


def apply_layer(x: Tensor, mask: Tensor, cosines: Tensor, sines: Tensor, parts: Parts) -> Tensor:
    """One decoder layer."""
    h = normalise(x, parts[0]).to(mask.dtype)
    x = x + _attend(h, mask, cosines, sines, parts[1:5])
    h = normalise(x, parts[5]).to(mask.dtype)
    gate, up = functional.linear(h, torch.cat(parts[6:8]).to(mask.dtype)).chunk(2, -1)
    return x + functional.linear(functional.silu(gate) * up, parts[8].to(mask.dtype))


def read_logits(x: Tensor, norm: Tensor, head: Tensor, dtype: torch.dtype) -> Tensor:
    """Final normalisation and head, on the hidden state of any layer."""
    return functional.linear(normalise(x, norm).to(dtype), head.to(dtype)).float()


def hidden_states(
    model: LlamaForCausalLM,
    batch: Batch,
    frame: Frame,
    wanted: Collection[int],
    skipped: Collection[int] = (),
    layer_function: LayerFunction = apply_layer,
) -> dict[int, Tensor]:
    """The hidden states after the wanted numbers of layers; the last is always among them."""
    x = functional.embedding(batch.ids, model.model.embed_tokens.weight)
    states: dict[int, Tensor] = {}
    layers = model.model.layers
    for index, layer in enumerate(layers):
        if index not in skipped:
            x = layer_function(x, frame.mask, frame.cosines, frame.sines, layer_parts(layer))
        if index + 1 in wanted or index + 1 == len(layers):
            states[index + 1] = x
    return states


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its element-wise work fused, where a compiler is installed."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return function
    return torch.compile(function, dynamic=False)
