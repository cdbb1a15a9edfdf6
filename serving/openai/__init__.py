"""The OpenAI-compatible routes, their bodies and their answers."""
