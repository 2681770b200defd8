"""The public modules."""

from .conv import KANConv1d, KANConv2d, KANConv3d
from .linear import KANLinear
from .network import KAN
from .products import Products

__all__ = ["KAN", "KANConv1d", "KANConv2d", "KANConv3d", "KANLinear", "Products"]
