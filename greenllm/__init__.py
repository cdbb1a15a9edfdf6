"""Green LLM inference and fine-tuning: every request comes back with its joules."""

__version__ = "0.1.0"
