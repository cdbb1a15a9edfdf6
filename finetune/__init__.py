"""Recipes that make or adapt models for greenllm; nothing here is imported while serving."""
