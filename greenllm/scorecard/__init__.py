"""The green score card: one form for what a run cost and what it is worth."""
