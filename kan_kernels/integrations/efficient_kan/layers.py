"""KANLinear and KAN of efficient-kan (github.com/Blealtan/efficient-kan, MIT), on these kernels.

The same constructor, parameter names, shapes, first random numbers, state dict and methods, written from the
behaviour of its revision 7b6ce1c; import them in place of efficient_kan's.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ... import functional as F
from ..._core import checks
from ..._core.bases import MAX_SPLINE_ORDER
from ..._core.tracing import tracing, untraced
from ...inspection import check_data
from . import core

if TYPE_CHECKING:
    from ...nn.network import Layers


class KANLinear(nn.Module):
    """A layer with a learnable function on every edge, in efficient-kan's layout.

    y[..., o] = sum_i ( base_weight[o,i] base_activation(x[..., i])
                        + sum_r spline_weight[o,i,r] spline_scaler[o,i] B_r(x[..., i]) )

    Args:
        in_features, out_features: positive sizes.
        grid_size: G >= 1 cells inside grid_range.
        spline_order: k, 1 to 10.
        scale_noise: the splines start as interpolations of noise from U(-1/2, 1/2) scale_noise / G.
        scale_base, scale_spline: sqrt(5) times these are the slopes `a` of Kaiming's initialisation of
            base_weight and spline_scaler; without a scaler scale_spline multiplies the first coefficients.
        enable_standalone_scale_spline: whether there is a spline_scaler.
        base_activation: a class or function that is called without arguments and returns the activation.
            nn.SiLU and nn.Identity run in the kernels, any other beside them.
        grid_eps: what part of the knots of `update_grid` is uniform, 0 to 1.
        grid_range: (low, high).

    Attributes:
        base_weight: (out, in). spline_weight: (out, in, G+k). spline_scaler: (out, in), if there is one.
        grid: buffer (in, G+2k+1).

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> KANLinear(2, 3)(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    grid: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        scale_noise: float = 0.1,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        enable_standalone_scale_spline: bool = True,
        base_activation: Callable[[], Callable[[Tensor], Tensor]] = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Sequence[float] = (-1, 1),
    ) -> None:
        super().__init__()
        self.in_features = in_features = checks.integer("in_features", in_features, 1)
        self.out_features = out_features = checks.integer("out_features", out_features, 1)
        self.grid_size = grid_size = checks.integer("grid_size", grid_size, 1)
        order = checks.integer("spline_order", spline_order, 1, MAX_SPLINE_ORDER)
        self.spline_order = spline_order = order
        checks.interval("grid_range", grid_range)
        self.grid_eps = checks.nonnegative("grid_eps", grid_eps, 1.0)
        self.enable_standalone_scale_spline = checks.boolean(
            "enable_standalone_scale_spline", enable_standalone_scale_spline
        )
        if not callable(base_activation):
            raise TypeError(
                f"base_activation: got {base_activation!r}, expected a class or function without arguments "
                "that returns the activation"
            )
        low, high = grid_range
        steps = torch.arange(-spline_order, grid_size + spline_order + 1)
        knots = steps * ((high - low) / grid_size) + low
        self.register_buffer("grid", knots.repeat(in_features, 1))
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, grid_size + spline_order))
        if enable_standalone_scale_spline:
            self.spline_scaler = nn.Parameter(torch.empty(out_features, in_features))
        self.scale_noise = scale_noise
        self.scale_base = scale_base
        self.scale_spline = scale_spline
        self.base_activation = base_activation()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the peer's first weights, in its order: the same seed gives the same layer."""
        nn.init.kaiming_uniform_(self.base_weight, a=math.sqrt(5) * self.scale_base)
        inner = self.grid[:, self.spline_order : self.spline_order + self.grid_size + 1]
        noise = torch.rand(self.grid_size + 1, self.in_features, self.out_features, device=inner.device)
        noise = (noise - 0.5) * self.scale_noise / self.grid_size
        scale = 1.0 if self.enable_standalone_scale_spline else self.scale_spline
        self.spline_weight.copy_(scale * self.curve2coeff(inner.t(), noise.to(inner.dtype)))
        if self.enable_standalone_scale_spline:
            nn.init.kaiming_uniform_(self.spline_scaler, a=math.sqrt(5) * self.scale_spline)

    @property
    def scaled_spline_weight(self) -> Tensor:
        """Return spline_weight (out, in, G+k), times spline_scaler if there is one."""
        return core.scaled_weight(self)

    def b_splines(self, x: Tensor) -> Tensor:
        """Return the dense basis at x (B, in): (B, in, G+k). forward does not need it."""
        self._check_rows(x)
        return F.bspline_basis(x, self.grid, self.spline_order)

    def curve2coeff(self, x: Tensor, y: Tensor) -> Tensor:
        """Return coefficients (out, in, G+k) of the splines nearest to y (B, in, out) at x (B, in).

        Least squares in the dtype of x, float32 or float64; on the CPU, of several solutions the shortest.
        The peer's driver, gelsy, misses it in torch's batches: a column order found for one feature is kept
        for the next.
        """
        self._check_rows(x)
        _check_solvable(x)
        expected = (len(x), self.in_features, self.out_features)
        if not isinstance(y, Tensor) or tuple(y.shape) != expected:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"y: got {got}, expected a tensor {expected}")
        basis = self.b_splines(x).transpose(0, 1)
        driver = "gelsd" if basis.is_cpu else "gels"  # CUDA has no other
        return (
            torch.linalg.lstsq(basis, y.transpose(0, 1), driver=driver).solution.permute(2, 0, 1).contiguous()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        return core.forward(self, x)

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float = 0.01) -> None:
        """Move the knots to where the data is, as efficient-kan does.

        The new spline_weight holds the coefficients of the scaled spline, so that a layer with a scaler
        computes another function afterwards: the peer's behaviour, kept. `kan_kernels.grids.update_grid` of a
        converted model keeps the function.

        Args:
            x: (B, in), B >= 1, finite, in the weights' dtype, float32 or float64: like the peer's, least
                squares in 16 bits do not exist.
            margin: how far uniform knots reach beyond the data.

        Raises:
            TypeError, ValueError: naming the argument; the layer is as it was.
        """
        self._check_rows(x)
        check_data(x, self)
        _check_solvable(x)
        checks.nonnegative("margin", margin)
        new = core.moved(self, x, margin)
        if (
            new is None
        ):  # no unique solution: the peer's own way, sampled targets, but surely the shortest solution
            splines = self.b_splines(x).transpose(0, 1)
            targets = torch.bmm(splines, self.scaled_spline_weight.permute(1, 2, 0)).transpose(0, 1)
            before = self.grid.clone()
            self.grid.copy_(core.placed_knots(x, self.grid_size, self.spline_order, self.grid_eps, margin))
            try:
                new = self.grid, self.curve2coeff(x, targets)
            except BaseException:
                self.grid.copy_(before)
                raise
        self.grid.copy_(new[0])
        self.spline_weight.data.copy_(new[1])  # past autograd, as the peer does

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """Return the peer's regulariser: the sum and entropy of the mean magnitudes of the coefficients."""
        size = self.spline_weight.abs().mean(-1)
        total = size.sum()
        share = size / total
        return regularize_activation * total - regularize_entropy * (share * share.log()).sum()

    def _check_rows(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: got {type(x).__name__}, expected a torch.Tensor")
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (batch, {self.in_features})")

    def _dispatch_options(self) -> dict[str, Any]:
        return {
            "widths": (self.in_features, self.out_features),
            "grid_size": self.grid_size,
            "spline_order": self.spline_order,
            "base": core.kernel_base(self.base_activation),
            "device": self.spline_weight.device,
            "dtype": self.spline_weight.dtype,
        }

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, grid_size={self.grid_size}, "
            f"spline_order={self.spline_order}"
        )


def _check_solvable(x: Tensor) -> None:
    if x.dtype in checks.HALF_DTYPES:
        raise TypeError(
            f"x: got {x.dtype}, expected float32 or float64, in which torch solves least squares; "
            "move the knots before the layer is cast to 16 bits"
        )


class KAN(nn.Module):
    """A stack of KANLinear in `layers`.

    Args:
        layers_hidden: at least two positive widths, from the input's to the output's.
        grid_size, spline_order, scale_noise, scale_base, scale_spline, base_activation, grid_eps, grid_range:
            as for KANLinear, the same for every layer.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> KAN([2, 5, 1])(torch.zeros(4, 2)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        layers_hidden: Sequence[int],
        grid_size: int = 5,
        spline_order: int = 3,
        scale_noise: float = 0.1,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        base_activation: Callable[[], Callable[[Tensor], Tensor]] = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Sequence[float] = (-1, 1),
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            KANLinear(
                fan_in,
                fan_out,
                grid_size,
                spline_order,
                scale_noise,
                scale_base,
                scale_spline,
                base_activation=base_activation,
                grid_eps=grid_eps,
                grid_range=grid_range,
            )
            for fan_in, fan_out in pairwise(checks.widths(layers_hidden, "layers_hidden"))
        )
        self.grid_size, self.spline_order = self.layers[0].grid_size, self.layers[0].spline_order

    if TYPE_CHECKING:

        @property
        def layers(self) -> Layers[KANLinear]: ...
        @layers.setter
        def layers(self, layers: nn.ModuleList) -> None: ...

    def reset_parameters(self) -> None:
        """Initialise every layer anew, on the knots that it has."""
        for layer in self.layers:
            layer.reset_parameters()

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        """Map x (..., widths[0]) to y (..., widths[-1]).

        Args:
            update_grid: each layer moves its knots first; x is (B, in). After an error in any of them all
                knots and coefficients are as they were, where the peer's layers before it have moved.
        """
        if tracing() and isinstance(update_grid, Tensor):  # the exporter of ONNX makes one of the default
            update_grid = untraced(bool, update_grid)
        if update_grid is not False and checks.boolean("update_grid", update_grid):
            return self._moving_forward(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def _moving_forward(self, x: Tensor) -> Tensor:
        before: list[tuple[KANLinear, Tensor, Tensor]] = []
        try:
            for layer in self.layers:
                before.append((layer, layer.grid.clone(), layer.spline_weight.detach().clone()))
                layer.update_grid(x)
                x = layer(x)
        except BaseException:
            for layer, grid, weight in before:
                with torch.no_grad():  # counted: what was worked out from the knots is no longer good
                    layer.grid.copy_(grid)
                layer.spline_weight.data.copy_(weight)
            raise
        return x

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """Return the sum over the layers."""
        losses = [
            layer.regularization_loss(regularize_activation, regularize_entropy) for layer in self.layers
        ]
        return torch.stack(losses).sum()
