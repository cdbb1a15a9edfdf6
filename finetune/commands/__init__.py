"""What `greenllm finetune` and `greenllm compress` do."""
