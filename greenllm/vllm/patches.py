"""What of vLLM's CPU build is put right before it is started. Each is tested against plain runs.

- Rows without an adapter, in a step with adapters, got those of the last slot: the kernels written
  in torch read weights at index -1 (github.com/vllm-project/vllm pull requests 48421 and 49656).

Not covered: guesses with sampling (issue 55005), which `translate.refuse` keeps away.
"""

from __future__ import annotations

from typing import Any

_DONE = "_greenllm_leaves_others_alone"


def put_right() -> None:
    """Apply all, once."""
    from vllm.lora.ops.torch_ops import lora_ops

    plain = lora_ops.bgmv_shrink
    if hasattr(plain, _DONE):
        return

    def shrink(x: Any, weights: Any, out: Any, places: Any, scaling: float = 1.0) -> None:
        plain(x, weights, out, places, scaling)
        out.masked_fill_((places < 0).unsqueeze(1), 0)

    setattr(shrink, _DONE, True)
    lora_ops.bgmv_shrink = shrink
