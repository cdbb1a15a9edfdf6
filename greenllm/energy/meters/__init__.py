"""Meters: joules as sensors count them, or as a model estimates them."""
