"""Convolutional-network layers with explicit forward and backward, on NumPy and CuPy."""

__version__ = "0.1.0"
