"""Benchmarks: tokens, joules and what the metering itself costs."""
