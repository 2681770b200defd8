"""The stateless API."""

import torch

from .activation import basis_activation, kan_activation, multi_head_kan_linear
from .conv import kan_conv
from .edges import basis_gram, edge_l1, edge_moments
from .linear import basis_linear, bspline_basis, kan_linear

__all__ = [
    "basis_activation",
    "basis_gram",
    "basis_linear",
    "bspline_basis",
    "edge_l1",
    "edge_moments",
    "kan_activation",
    "kan_conv",
    "kan_linear",
    "multi_head_kan_linear",
]

# torch.fx.symbolic_trace takes calls of these, by way of this package, as they stand
torch.fx.wrap("kan_linear")
torch.fx.wrap("basis_linear")
torch.fx.wrap("kan_activation")
torch.fx.wrap("basis_activation")
torch.fx.wrap("multi_head_kan_linear")
torch.fx.wrap("kan_conv")
