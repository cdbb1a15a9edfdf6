"""Smaller models out of larger ones, each with its bill: pruned, or taught by the larger one."""
