"""Fine-tuning jobs and uploaded files: what is stored, and who runs it."""
