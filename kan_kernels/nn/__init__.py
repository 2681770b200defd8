"""The public modules."""

from .conv import KANConv1d, KANConv2d, KANConv3d
from .feed_forward import KANFeedForward
from .heads import KANActivation, MultiHeadKANLinear
from .lazy import LazyKANConv1d, LazyKANConv2d, LazyKANConv3d, LazyKANLinear
from .linear import KANLinear
from .network import KAN
from .products import Products
from .selected import SelectedInputs

__all__ = ["KAN", "KANActivation", "KANConv1d", "KANConv2d", "KANConv3d", "KANFeedForward", "KANLinear"]
__all__ += ["LazyKANConv1d", "LazyKANConv2d", "LazyKANConv3d", "LazyKANLinear"]
__all__ += ["MultiHeadKANLinear", "Products", "SelectedInputs"]
