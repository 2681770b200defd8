"""What pykan's MultKAN keeps of a forward pass, computed when it is read.

pykan takes it from (batch, out, in) tensors that it makes in every forward pass. Here a pass leaves its
inputs and weights behind. Standard deviations come from Gram matrices of the basis; a tensor of that size
appears only for whoever reads one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import functional as F
from ..._core.bases import BASE_CODES
from ..._engine.edges_autograd import Moments
from .layer import Weights
from .symbolic import Symbolic

_FLAT = 1e-4  # of the mean, or of a coefficient: variances from sums of squares keep eight digits there


class Layer:
    """A layer's part of a forward pass.

    Args:
        x: (B, in), its inputs.
        y: (B, out), before the affine maps of subnodes and nodes.
        weights: what the kernels ran on, or
        dense: preacts, postacts and postsplines of pykan's own code.
        symbolic: what the symbolic edges added: columns, or pykan's dense (B, out, in), or None for nothing.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        weights: Weights | None,
        dense: tuple[Tensor, Tensor, Tensor] | None,
        symbolic: Symbolic | Tensor | None,
    ) -> None:
        self.x, self.y, self.weights, self.dense, self.symbolic = x, y, weights, dense, symbolic
        self._spline_std: Tensor | None = None

    def detached(self) -> "Layer":
        """Return the same without gradients, to be copied and pickled."""
        symbolic = self.symbolic
        if isinstance(symbolic, Tensor):
            symbolic = symbolic.detach()
        elif symbolic is not None:
            symbolic = symbolic._replace(columns=symbolic.columns.detach())
        dense = None if self.dense is None else tuple(t.detach() for t in self.dense)
        weights = None if self.weights is None else self.weights.detach()
        return Layer(self.x.detach(), self.y.detach(), weights, dense, symbolic)  # type: ignore[arg-type]

    def spline_preacts(self) -> Tensor:
        if self.dense is not None:
            return self.dense[0].detach()
        out_dim = self.y.shape[1]
        return self.x.detach().unsqueeze(1).clone().expand(-1, out_dim, -1)

    def spline_postsplines(self) -> Tensor:
        if self.dense is not None:
            return self.dense[2].detach()
        assert self.weights is not None
        return self.weights.detach().splines(self.x.detach())

    def spline_postacts(self) -> Tensor:
        return self._activations().detach()

    def acts_scale(self) -> Tensor:
        return (self.edge_actscale() / self._input_range()).detach()

    def acts_scale_spline(self) -> Tensor:
        return self._spline_deviation() / self._input_range()

    def edge_actscale(self) -> Tensor:
        """Return the standard deviation of what each edge adds, symbolic part included: (out, in)."""
        deviation, symbolic = self._spline_deviation(), self.symbolic
        if symbolic is None:
            return deviation
        if isinstance(symbolic, Tensor) or self.weights is None:
            return torch.std(self._activations(), dim=0)
        total = self._columns(symbolic) + symbolic.columns
        return deviation.index_put((symbolic.outputs, symbolic.inputs), torch.std(total, dim=0))

    def subnode_actscale(self) -> Tensor:
        return torch.std(self.y.detach(), dim=0)

    def _input_range(self) -> Tensor:
        if self.dense is not None:
            return torch.std(self.dense[0], dim=0) + 0.1
        # (in,), for every output the same; torch.std is slow over columns
        spread = torch.linalg.vector_norm(self.x - self.x.mean(0), dim=0)
        return spread / max(len(self.x) - 1, 0) ** 0.5 + 0.1

    def _spline_deviation(self) -> Tensor:
        """Return the standard deviation of what the numerical half of each edge adds: (out, in)."""
        if self._spline_std is None:
            if self.weights is None:
                assert self.dense is not None
                self._spline_std = torch.std(self.dense[1], dim=0)
            elif self.x.shape[0] < 2:  # NaN, as pykan has it
                self._spline_std = torch.std(self.weights.activations(self.x), dim=0)
            else:
                w = self.weights  # `kan_linear` has checked them: what follows is F.edge_moments
                code, grid = BASE_CODES[w.base_name], w.grid.double()
                mean, std = Moments.run(self.x, w.spline, w.base, grid, w.order, code, 1)[:2]
                self._spline_std = self._where_flat(mean.detach().T, std.to(w.spline.dtype).T)
        return self._spline_std

    def _where_flat(self, mean: Tensor, deviation: Tensor) -> Tensor:
        """Return deviations (out, in), from values where a function hardly varies: sums of squares cancel."""
        assert self.weights is not None
        w = self.weights
        level = torch.maximum(mean.abs(), w.spline.detach().abs().amax(1).T)
        (found,) = torch.where((deviation.detach() < _FLAT * level).any(0))
        if len(found) == 0:
            return deviation
        part = Weights(w.coef[found], w.spline[found], w.base[found], w.grid[found], w.order, w.base_name)
        return deviation.index_copy(1, found, torch.std(part.activations(self.x[:, found]), dim=0))

    def _activations(self) -> Tensor:
        """Return what each edge adds: (B, out, in)."""
        if self.weights is None:
            assert self.dense is not None
            numerical = self.dense[1]
        else:
            numerical = self.weights.activations(self.x)
        symbolic = self.symbolic
        if symbolic is None:
            return numerical
        if isinstance(symbolic, Tensor):
            return numerical + symbolic
        where = (
            torch.arange(len(numerical), device=numerical.device).unsqueeze(1),
            symbolic.outputs,
            symbolic.inputs,
        )
        return numerical.index_put(where, symbolic.columns, accumulate=True)

    def _columns(self, symbolic: Symbolic) -> Tensor:
        """Return what the numerical half of the symbolic edges adds: (B, n)."""
        assert self.weights is not None
        w, inputs, outputs = self.weights, symbolic.inputs, symbolic.outputs
        x = self.x[:, inputs]
        basis = F.bspline_basis(x, w.grid[inputs], w.order)
        values = torch.einsum("bnr,nr->bn", basis, w.spline[inputs, :, outputs])
        return values + w.base_values(x) * w.base[inputs, outputs]


STATISTICS: dict[str, Callable[[Layer], Tensor]] = {
    "spline_preacts": Layer.spline_preacts,
    "spline_postsplines": Layer.spline_postsplines,
    "spline_postacts": Layer.spline_postacts,
    "acts_scale": Layer.acts_scale,
    "acts_scale_spline": Layer.acts_scale_spline,
    "edge_actscale": Layer.edge_actscale,
    "subnode_actscale": Layer.subnode_actscale,
}
"""The attributes of a MultKAN that are computed when they are read: lists with an entry for each layer."""


class Pass:
    """A forward pass: a Layer for each layer."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.done = False
        self.recording = torch.is_grad_enabled()

    def compute(self, name: str) -> list[Tensor]:
        """Return the list that pykan's attribute of this name holds after such a pass."""
        # kept for later readers, who may train: no inference tensors, whatever the mode of the first
        with torch.inference_mode(False), torch.set_grad_enabled(self.recording):
            return [STATISTICS[name](layer) for layer in self.layers]

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": [layer.detached() for layer in self.layers], "recording": False, "done": True}
