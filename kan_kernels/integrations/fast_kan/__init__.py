"""FastKAN: its layers on these kernels, and what takes its own."""

from .layers import FastKAN, FastKANLayer, RadialBasisFunction

__all__ = ["FastKAN", "FastKANLayer", "RadialBasisFunction"]
