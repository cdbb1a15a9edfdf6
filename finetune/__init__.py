"""Recipes that make or adapt models for greenllm; serving knows nothing of it."""
