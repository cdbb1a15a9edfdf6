"""Hours of load, and what grows meanwhile."""
