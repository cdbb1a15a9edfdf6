"""Draft tokens and early exits: who drafts, how much, and whether it pays."""
