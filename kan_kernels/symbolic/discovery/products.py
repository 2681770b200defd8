"""Shapes of networks, with and without products, and the networks of a shape."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...nn import KAN, KANLinear
from .form import Factor, Node


class Shape(NamedTuple):
    """A shape: widths, of which the first hidden one may be (sums, products of two neighbours).

    widths: inputs, sums of each hidden layer, outputs. products: those of the first hidden layer.
    """

    widths: tuple[int, ...]
    products: int = 0

    def __str__(self) -> str:
        widths: list = list(self.widths)
        if self.products:
            widths[1] = (widths[1], self.products)
        return str(widths)

    def nodes(self, factors: Sequence[Factor]) -> tuple[Node, ...]:
        """Return the nodes of the first hidden layer: sums, then products of two."""
        sums = self.widths[1]
        pairs = [(factors[i], factors[i + 1]) for i in range(sums, len(factors), 2)]
        return (*((factor,) for factor in factors[:sums]), *pairs)

    def spread(self, weight: Tensor) -> Tensor:
        """Map a number for each node of the first hidden layer to one for each factor."""
        sums = self.widths[1]
        return torch.cat((weight[:sums], weight[sums:].repeat_interleave(2)))


class ProductNetwork(nn.Module):
    """A network [n, (s, p), out]: a layer of s + 2 p sums, the last 2 p multiplied in pairs, and another."""

    def __init__(self, shape: Shape, grid_size: int) -> None:
        super().__init__()
        inputs, sums, outputs = shape.widths
        self.shape = shape
        factors = sums + 2 * shape.products
        self.inner = KANLinear(inputs, factors, grid_size, base="identity", dtype=torch.float64)
        self.outer = KANLinear(
            sums + shape.products, outputs, grid_size, base="identity", dtype=torch.float64
        )

    @property
    def layers(self) -> list[KANLinear]:
        """Return both layers."""
        return [self.inner, self.outer]

    def hidden(self, x: Tensor) -> Tensor:
        """Map x (..., in) to the nodes (..., s + p)."""
        values, sums = self.inner(x), self.shape.widths[1]
        return torch.cat((values[..., :sums], values[..., sums::2] * values[..., sums + 1 :: 2]), -1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        return self.outer(self.hidden(x))


Network = KAN | ProductNetwork


def network(shape: Shape, grid_size: int) -> Network:
    """Return a new network of a shape, in float64."""
    if shape.products:
        return ProductNetwork(shape, grid_size)
    return KAN(list(shape.widths), grid_size, base="identity", dtype=torch.float64)


@torch.no_grad()
def parts(model: Network, x: Tensor) -> list[tuple[KANLinear, Tensor]]:
    """Return each layer with what reaches it."""
    found: list[tuple[KANLinear, Tensor]] = []
    for n, layer in enumerate(model.layers):
        found.append((layer, x))
        x = model.hidden(x) if n == 0 and isinstance(model, ProductNetwork) else layer(x)
    return found
