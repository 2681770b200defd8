"""The public modules."""

from .conv import KANConv1d, KANConv2d, KANConv3d
from .lazy import LazyKANConv1d, LazyKANConv2d, LazyKANConv3d, LazyKANLinear
from .linear import KANLinear
from .network import KAN

__all__ = [
    "KAN",
    "KANConv1d",
    "KANConv2d",
    "KANConv3d",
    "KANLinear",
    "LazyKANConv1d",
    "LazyKANConv2d",
    "LazyKANConv3d",
    "LazyKANLinear",
]
