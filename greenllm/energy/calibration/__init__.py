"""Fits the model of a machine to a wall meter."""
