"""What vLLM's other processes need before they load a model that is spread over several CPUs.

Contract: vLLM imports this module, by the name of `Extension`, in every worker process before it
makes the worker; importing it puts right there what `patches` does here. On CUDA it is not used.
"""

from __future__ import annotations

from greenllm.vllm.patches import put_right

put_right()


class Extension:
    """Adds nothing to vLLM's worker: it is there to be imported."""
