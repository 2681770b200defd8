"""efficient-kan: its layers on these kernels, and what takes its own."""

from .layers import KAN, KANLinear

__all__ = ["KAN", "KANLinear"]
