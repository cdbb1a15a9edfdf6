"""Load on any OpenAI-compatible server: what to send, sending it, what came back, what it took."""
