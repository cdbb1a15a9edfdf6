"""The account: which request pays for which joules, so that all of them add up."""
