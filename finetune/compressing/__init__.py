"""Smaller models out of larger ones, each with its bill: pruned, distilled, factorized, sparse."""
