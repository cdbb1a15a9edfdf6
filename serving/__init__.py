"""The HTTP edge: an OpenAI-compatible server whose answers carry their joules."""
