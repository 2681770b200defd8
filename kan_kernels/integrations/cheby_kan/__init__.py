"""ChebyKAN: its layers on these kernels, and what takes its own."""

from .layers import ChebyKANLayer

__all__ = ["ChebyKANLayer"]
