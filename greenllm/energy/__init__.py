"""Joules and grams: meters, attribution, carbon, the ledger. No torch, no HTTP."""
