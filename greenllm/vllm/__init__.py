"""vLLM as an engine: its scheduler and kernels under greenllm's account.

Nothing here is imported unless `--engine vllm` is asked for, or chosen on a CUDA device.
"""
