"""Faults, one after another, into a server under load; what was promised is proved at the end."""
