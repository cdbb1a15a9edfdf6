"""The `greenllm` command line."""
