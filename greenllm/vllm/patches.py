"""What of vLLM's CPU build is put right before it is started. Each is tested against plain runs.

- Rows without an adapter, in a step with adapters, got those of the last slot: the kernels written
  in torch read weights at index -1 (github.com/vllm-project/vllm pull requests 48421 and 49656).
- Sampling with draft tokens read memory that nobody had written for temperatures, top-k and top-p:
  the kernel that repeats them for every token fills a copy (issue 55005; so it is in 0.32.0).
- A step without draft tokens, while speculating, stopped vLLM where answers are sampled with top-k
  alone: it looked for the largest of no numbers (0.32.0).
- Checkpoints of 8-bit weights and inputs did not load beside adapters: the kernel takes the weight
  away, and what wraps the layer for adapters asks it for its device (0.32.0). An empty weight
  stays, as it does where nothing is quantized.

Contract: what is replaced is replaced by what it is documented to do, so a vLLM without the fault
answers the same. Where there is no such function, or it takes something else, that is an error:
nothing is left out in silence.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

_DONE = "_greenllm_put_right"


def put_right() -> None:
    """Apply all, once."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
    from vllm.v1.sample import rejection_sampler

    if hasattr(lora_ops.bgmv_shrink, _DONE):
        return
    lora_ops.bgmv_shrink = _leaving_others_alone(lora_ops.bgmv_shrink)
    # Both are called by their names in this module.
    rejection_sampler.expand_batch_to_tokens = in_place_of(
        rejection_sampler.expand_batch_to_tokens, repeated
    )
    rejection_sampler.apply_sampling_constraints = sparing_nothing(
        rejection_sampler.apply_sampling_constraints
    )
    CPUInt8ScaledMMLinearKernel.process_weights_for_onednn = leaving_a_weight(
        CPUInt8ScaledMMLinearKernel.process_weights_for_onednn
    )


def leaving_a_weight(plain: Any) -> Any:
    """A method of a kernel that leaves its layer an empty weight where it left none."""

    def process(kernel: Any, layer: Any) -> None:
        name = kernel.layer_param_names[0]
        empty = torch.nn.Parameter(getattr(layer, name).data.new_empty(0), requires_grad=False)
        plain(kernel, layer)
        if getattr(layer, name) is None:
            setattr(layer, name, empty)

    return process


def _leaving_others_alone(plain: Any) -> Any:
    def shrink(x: Any, weights: Any, out: Any, places: Any, scaling: float = 1.0) -> None:
        plain(x, weights, out, places, scaling)
        out.masked_fill_((places < 0).unsqueeze(1), 0)

    setattr(shrink, _DONE, True)
    return shrink


def in_place_of(plain: Any, better: Any) -> Any:
    """The better function, if it takes what the plain one does.

    Raises:
        TypeError: it takes something else.
    """
    theirs, ours = (tuple(inspect.signature(one).parameters) for one in (plain, better))
    if theirs != ours:
        raise TypeError(f"{plain.__name__} takes {theirs}, not {ours}")
    return better


def sparing_nothing(plain: Any) -> Any:
    """A function of logits that is not asked about no rows."""

    def constrain(logits: Any, *more: Any) -> Any:
        return plain(logits, *more) if len(logits) else logits

    return constrain


def repeated(
    x: Any, cu_num_tokens: Any, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Any:
    """A value per sequence, once for each of its tokens; `cu_num_tokens` counts them up.

    One value may be replaced by another on the way.
    """
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    found = x.repeat_interleave(counts, output_size=num_tokens)
    return found.masked_fill(found == replace_from, replace_to)
