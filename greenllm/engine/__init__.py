"""The engine: what is waiting, what runs together in a step, and what is told of it."""
