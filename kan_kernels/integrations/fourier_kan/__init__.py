"""FourierKAN: its layers on these kernels, and what takes its own."""

from .layers import NaiveFourierKANLayer

__all__ = ["NaiveFourierKANLayer"]
