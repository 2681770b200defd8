"""KANLinear, with the manners of torch.nn."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from .._core import checks
from .._engine.layer import of_parts
from .spline_module import SplineModule
from .symbolic_edges import SymbolicEdges


class KANLinear(SplineModule):
    """Replaces nn.Linear: a learnable univariate function, base plus B-spline, on every edge.

    y[...,o] = sum_i ( base_weight[i,o] base(x[...,i]) + sum_r spline_weight[i,r,o] B_r(x[...,i]) ) + bias[o]

    Args:
        in_features, out_features: positive sizes.
        grid_size: G >= 1, the number of cells inside grid_range.
        spline_order: k, 0 to 10.
        grid_range: (low, high), covered by uniform knots; k more cells on each side.
        base: "silu", "identity" or None.
        bias: whether to add a learnable bias.
        noise_scale: the standard deviation of a node's first spline coefficients, all inputs together; None:
            0.1, or 1 without a base.
        backend: "native", "triton", "reference" or None, the automatic choice.
        device, dtype: of the parameters.

    Attributes:
        spline_weight: (in, G+k, out). base_weight: (in, out) or None. bias: (out,) or None.
        grid: buffer (in, G+2k+1). It stays in float32 when the module is cast to 16 bits, too few to tell
            neighbouring knots apart; it follows a cast to float64.
        grid_range: (low, high), what the inner knots of all features span where they were last placed.
        edge_mask: buffer (in, out) of zeros and ones, or None, the default: an edge's function is multiplied
            by its entry. See `set_edge_mask`.
        symbolic: the edges that were given a formula, a `kan_kernels.symbolic.SymbolicEdges`, or None, the
            default. What they compute is added.

    A state dict holds the mask and the symbolic edges too, and a layer that loads one becomes what it holds:
    it takes over mask, symbolic edges and grid size, where features and spline order agree. A state dict that
    does not fit leaves the module as it was when the module itself loads it, as KAN does for all its layers;
    in nn.Sequential and other containers, whose load_state_dict is torch's, what fits has been loaded by
    then. Whatever changes the grid size replaces the parameter `spline_weight`, so optimizers have to be
    built anew.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> layer = KANLinear(2, 3, grid_size=10, bias=True)
        >>> layer(torch.zeros(4, 2)).shape, layer.spline_weight.shape
        (torch.Size([4, 3]), torch.Size([2, 13, 3]))
    """

    _version = 1
    noise_scale: float | None = None  # of layers that were pickled before it was there
    base_weight: nn.Parameter | None
    bias: nn.Parameter | None
    edge_mask: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        *,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        base: str | None = "silu",
        bias: bool = False,
        noise_scale: float | None = None,
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features = checks.integer("in_features", in_features, 1)
        self.out_features = out_features = checks.integer("out_features", out_features, 1)
        bias = checks.boolean("bias", bias)
        if noise_scale is not None:
            noise_scale = checks.nonnegative("noise_scale", noise_scale)
        self.noise_scale = noise_scale
        options = (grid_size, spline_order, grid_range, base, backend)
        parameter, dtype = self.set_options(*options, device, dtype)
        self.spline_weight = parameter(in_features, self.grid_size + self.spline_order, out_features)
        self.register_parameter("base_weight", parameter(in_features, out_features) if base else None)
        self.register_parameter("bias", parameter(out_features) if bias else None)
        self.make_grid(in_features, device, dtype)
        self.register_buffer("edge_mask", None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the paper's first weights (section 2.2), on uniform knots over each feature's present range.

        That range is the constructor's grid_range until `grids.update_grid`, a state dict or a converter
        places the knots elsewhere; knots that were written into `grid` by other code are not followed.
        Xavier for base_weight. Spline coefficients from N(0, 0.1^2), so that spline(x) is about 0 and base
        carries the signal; divided by sqrt(in), so that it also holds for the sum over many inputs.
        Without a base the spline carries the signal alone, and the factor 0.1 is left out. `noise_scale`
        takes the place of either factor.
        The edge mask and symbolic edges stay as they are.

        Args:
            generator: of the random numbers; torch's global one by default.
        """
        self.reset_grid()
        scale = self.noise_scale
        if scale is None:
            scale = 1.0 if self.base is None else 0.1
        nn.init.normal_(self.spline_weight, std=scale / self.in_features**0.5, generator=generator)
        if self.base_weight is not None:
            nn.init.xavier_uniform_(self.base_weight, generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def set_edge_mask(self, mask: Tensor | None) -> None:
        """Switch edges on (1) and off (0); None switches all on, at no cost.

        A mask is about splines. An edge that has a formula keeps it, and 1 does not switch the spline
        underneath on, but has `symbolic.unfix` find it on. To switch such an edge off, `unfix` it first.

        Args:
            mask: (in, out), zeros and ones of any dtype, copied. An edge that is off takes no part in forward
                and its weights get no gradient; NaN and inf in x still reach every output, as do those in its
                weights, which are multiplied by 0.

        Raises:
            TypeError, ValueError: `mask` is no tensor, has another shape or other values.
        """
        expected = f"a tensor ({self.in_features}, {self.out_features}) of zeros and ones, or None"
        if mask is not None:
            if hasattr(self.spline_weight, "device_mesh"):
                raise ValueError("mask: the layer is sharded over ranks, expected it to be set before that")
            if not isinstance(mask, Tensor):
                raise TypeError(f"mask: got {type(mask).__name__}, expected {expected}")
            if mask.shape != (self.in_features, self.out_features):
                raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected {expected}")
            if not mask.is_meta and not ((mask == 0) | (mask == 1)).all():
                raise ValueError(f"mask: got other values than 0 and 1, expected {expected}")
            weight = self.spline_weight
            mask = mask.detach().to(device=weight.device, dtype=weight.dtype, copy=True)
        symbolic = self.symbolic
        self.edge_mask = mask if symbolic is None else symbolic.splines_on(mask, self.edge_mask)

    def masked_weights(self) -> tuple[Tensor, Tensor | None]:
        """Return spline_weight and base_weight as forward uses them: zero on edges that are off."""
        if self.edge_mask is None:
            return self.spline_weight, self.base_weight
        return masked(self.spline_weight, self.base_weight, self.edge_mask)

    @property
    def symbolic(self) -> SymbolicEdges | None:
        """Return the edges that were given a formula, or None."""
        return self._modules.get("symbolic")  # type: ignore[return-value]

    def set_symbolic(self, edges: SymbolicEdges | None) -> None:
        """Replace the symbolic edges; None removes them. `kan_kernels.symbolic.fix` masks their splines too.

        Raises:
            TypeError, ValueError: `edges` are no SymbolicEdges, or those of a layer of another shape.
        """
        if edges is None:
            self._modules.pop("symbolic", None)
            return
        expected = f"SymbolicEdges of {self.in_features} inputs and {self.out_features} outputs, or None"
        if not isinstance(edges, nn.Module) or not hasattr(edges, "in_features"):
            raise TypeError(f"edges: got {type(edges).__name__}, expected {expected}")
        if (edges.in_features, edges.out_features) != (self.in_features, self.out_features):
            raise ValueError(
                f"edges: got {edges.in_features} inputs and {edges.out_features} outputs, expected {expected}"
            )
        self._modules["symbolic"] = edges

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        try:  # Module.__getattr__ takes longer than a small kernel; its dicts do not
            parameters: dict[str, Any] = self._parameters
            buffers: dict[str, Any] = self._buffers
            spline_weight, base_weight, bias = (
                parameters["spline_weight"],
                parameters["base_weight"],
                parameters["bias"],
            )
            grid, edge_mask = buffers["grid"], buffers["edge_mask"]
        except KeyError:  # parametrized or pruned: no longer plain parameters
            spline_weight, base_weight, bias, grid, edge_mask = (
                self.spline_weight,
                self.base_weight,
                self.bias,
                self.grid,
                self.edge_mask,
            )
        if edge_mask is not None:
            if isinstance(x, Tensor):
                spline_weight, base_weight = masked(spline_weight, base_weight, edge_mask)
            else:  # torch.fx sees what is made of attributes
                spline_weight, base_weight = self.masked_weights()
        try:
            y = F.kan_linear(
                x,
                spline_weight,
                grid,
                spline_order=self.spline_order,
                base_weight=base_weight,
                base=self.base,
                bias=bias,
                backend=self.backend,
            )
        except checks.GridError as error:  # written into after it was made or loaded
            raise checks.GridError(f"{self._get_name()}({self.extra_repr()}): {error}") from None
        symbolic = self._modules.get("symbolic")
        if symbolic is None:
            return y
        nested = isinstance(x, Tensor) and x.is_nested
        formulas = of_parts(x, symbolic) if nested else symbolic(x)
        return y + formulas.to(y.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take over what a checkpoint of a layer holds besides values: grid size, mask, symbolic edges."""
        weight, grid = state_dict.get(prefix + "spline_weight"), state_dict.get(prefix + "grid")
        if weight is not None and grid is not None:
            rows, order = self.spline_weight.shape[1], self.spline_order
            fits = weight.dim() == 3 and weight.shape[::2] == self.spline_weight.shape[::2]
            if fits and weight.shape[1] > order and grid.shape[1:] == (weight.shape[1] + order + 1,):
                symbolic = self._symbolic_of(
                    state_dict, prefix + "symbolic."
                )  # raises before anything changes
                if weight.shape[1] != rows:
                    self._resize(weight.shape[1] - order)
                whole = self.base_weight is None or prefix + "base_weight" in state_dict  # else a part of one
                if prefix + "edge_mask" in state_dict:
                    if self.edge_mask is None:
                        self.edge_mask = self.spline_weight.new_ones(self.in_features, self.out_features)
                elif whole:
                    self.edge_mask = None
                if whole or symbolic is not None:
                    self.set_symbolic(symbolic)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _symbolic_of(self, state_dict, prefix: str) -> SymbolicEdges | None:
        """Make symbolic edges as the checkpoint has them, their values still to be loaded."""
        if not any(key.startswith(prefix) for key in state_dict):
            return None
        return SymbolicEdges.like_state(state_dict, prefix, self)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.options_repr(self.bias is not None)}"

    def _dispatch_options(self) -> dict[str, Any]:
        return {"widths": (self.in_features, self.out_features), **self.options_of_dispatch()}


def masked(spline_weight: Tensor, base_weight: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return both weights, zero on the edges that are off."""
    return spline_weight * mask.unsqueeze(1), None if base_weight is None else base_weight * mask
