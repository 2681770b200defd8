"""What a picture shows of a layer: how strong its edges are, their formulas and curves."""

from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..inspection import active_edges, edge_magnitudes, edge_values, formula_agreement
from ..nn import KANLinear
from .style import formula_label

POINTS = 101  # of a curve


@dataclass
class Seen:
    """A layer as it is drawn: magnitudes (in, out), which edges are there, formulas, curves of edges."""

    scores: NDArray
    active: NDArray
    formulas: dict[tuple[int, int], str]
    layer: KANLinear
    low: Tensor
    high: Tensor

    def curves(self) -> tuple[NDArray, NDArray]:
        """Return x (POINTS, in) and phi (POINTS, in, out), over the range of the data."""
        steps = torch.linspace(0, 1, POINTS, dtype=self.low.dtype, device=self.low.device).unsqueeze(1)
        x = self.low + (self.high - self.low) * steps
        phi = edge_values(self.layer, x)
        return x.double().cpu().numpy(), phi.double().cpu().numpy()


@torch.no_grad()
def look(layer: KANLinear, x: Tensor | None, score: Tensor | None) -> Seen:
    """Return a layer as it is drawn, on x (B, in), or over its knots; `score` in place of magnitudes."""
    k, grid = layer.spline_order, layer.grid
    if x is None:
        low, high = grid[:, k], grid[:, grid.shape[1] - k - 1]
        steps = torch.linspace(0, 1, 2 * POINTS, dtype=grid.dtype, device=grid.device).unsqueeze(1)
        x = (low + (high - low) * steps).to(layer.spline_weight.dtype)
    low, high = x.amin(0).to(grid.dtype), x.amax(0).to(grid.dtype)
    l1 = edge_magnitudes(layer, x) if score is None else score
    formulas: dict[tuple[int, int], str] = {}
    if layer.symbolic is not None:
        agreement = formula_agreement(layer, x)
        edges = [(edge.input, edge.output, edge.name) for edge in layer.symbolic.edges()]
        formulas = {(i, o): formula_label(name, agreement[i, o]) for i, o, name in edges}
    return Seen(l1.cpu().numpy(), active_edges(layer).cpu().numpy(), formulas, layer, low, high)
