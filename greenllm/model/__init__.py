"""Weights: what is loaded, how it is quantized, and the model that ships."""
