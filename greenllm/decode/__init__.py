"""Decoding: from logits to the next token."""
