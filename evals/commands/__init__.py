"""What `greenllm eval`, `tune`, `profile` and `bench` do."""
