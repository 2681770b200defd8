"""FastKAN (arXiv 2405.06721, github.com/ZiyaoLi/fast-kan): Gaussians in place of B-splines.

Layers of the same names, arguments, state dict, initialisation and numbers, on the fused kernels: nothing of
size batch x in x num_grids exists.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..._core import checks
from ..._core.bases import MAX_FUNCTIONS
from ..._core.tensor_cache import TensorCache, readable
from ..._core.tracing import untraced
from ..._engine import dispatch, layer_norm_rbf
from ...functional import basis_linear
from .._shared.eligible import watched
from ..efficient_kan.core import kernel_base

if TYPE_CHECKING:
    from ...nn.network import Layers

_Activation = Callable[[Tensor], Tensor]

# grids made of centres: the features, width and centres that they are for; torch counts not every write
_rows: TensorCache[tuple[int, float, Tensor, Tensor]] = TensorCache()


def kernel_rows(rbf: Any, features: int) -> Tensor:
    """Return the kernels' grid (features, num_grids + 1), centres and width, no gradient; kept on the CPU."""
    grid = rbf.grid
    if not grid.is_cpu or not readable(grid):
        return _made_rows(rbf, features)
    kept = _rows.get(grid)
    if kept is None or kept[:2] != (features, rbf.denominator) or not torch.equal(kept[2], grid):
        with torch.inference_mode(False):  # autograd saves it
            kept = features, rbf.denominator, grid.detach().clone(), _made_rows(rbf, features)
        _rows.put(grid, kept)
    return kept[3]


@torch.no_grad()
def _made_rows(rbf: Any, features: int) -> Tensor:
    """Make the grid, beside 16-bit centres in float32, so that the width is not rounded."""
    centres = rbf.grid
    if centres.dtype in checks.HALF_DTYPES:
        centres = centres.float()
    row = torch.cat([centres, centres.new_full((1,), rbf.denominator)])
    return row.repeat(features, 1)


def evaluate(
    layer: Any, x: Tensor, rows: Tensor | None, normalise: bool, backend: str | None = None
) -> Tensor:
    """Return what a FastKANLayer computes: x (..., in) to y (..., out).

    rows: the kernels' grid; None runs rbf and spline_linear themselves, in plain torch. normalise: whether
    the Gaussians see layernorm(x). layernorm and base_activation run their own code, base_linear too where it
    is more than a GEMM.
    """
    if rows is not None and normalise:
        module = untraced(one_op, layer, rows.shape[0], backend)
        if not isinstance(module, str) and layer_norm_rbf.why_not_call(x, layer.spline_linear.weight) is None:
            return _in_one_op(layer, x, rows, module, backend)
    z = layer.layernorm(x) if normalise else x
    linear = layer.base_linear if layer.use_base_update and is_linear(layer.base_linear) else None
    bias = None if linear is None else linear.bias
    base = None
    if rows is None:
        y = layer.spline_linear(layer.rbf(z).flatten(-2))
        y = y if bias is None else y + bias
    else:
        if linear is not None and not normalise:  # a row more of the same kernel
            base = kernel_base(layer.base_activation)
        features, functions = rows.shape[0], rows.shape[1] - 1
        weight = layer.spline_linear.weight
        weight = weight.reshape(weight.shape[0], features, functions).permute(1, 2, 0)
        base_weight = None if base is None else linear.weight.t()  # type: ignore[union-attr]
        y = basis_linear(
            z, weight, rows, basis="rbf", base_weight=base_weight, base=base, bias=bias, backend=backend
        )
    if not layer.use_base_update or base is not None:
        return y
    if linear is None:
        return y + layer.base_linear(layer.base_activation(x))
    flat = layer.base_activation(x).reshape(-1, x.shape[-1])
    return torch.addmm(y.reshape(-1, y.shape[-1]), flat, linear.weight.t()).view(y.shape)


def one_op(layer: Any, features: int, backend: str | None = None) -> ModuleType | str:
    """Return the backend that runs a call of the layer with its layernorm as the op layer_norm_rbf, or why
    the call is more than that op.
    """
    norm, features = layer.layernorm, int(features)  # while torch.jit traces a size is a tensor
    if type(norm).forward is not nn.LayerNorm.forward or watched(norm):
        return "layernorm has hooks or another forward than LayerNorm's"
    if tuple(norm.normalized_shape) != (features,):
        return f"layernorm is over {tuple(norm.normalized_shape)}, not over the {features} features"
    base = None
    if layer.use_base_update:
        if not is_linear(layer.base_linear):
            return "base_linear has hooks or another forward than Linear's"
        base = kernel_base(layer.base_activation)
        if base is None:
            return "the base activation has to run its own code"
    return layer_norm_rbf.backend_of(layer.spline_linear.weight, features, norm.weight, base, backend)


def _in_one_op(layer: Any, x: Tensor, rows: Tensor, module: ModuleType, asked: str | None) -> Tensor:
    norm, weight, bias, base = layer.layernorm, None, None, None
    if layer.use_base_update:
        weight, bias = layer.base_linear.weight, layer.base_linear.bias
        base = kernel_base(layer.base_activation)
    if x.dtype != rows.dtype:
        rows = rows.to(x.dtype)
    tensors = x, norm.weight, norm.bias, layer.spline_linear.weight, weight, bias, rows
    return layer_norm_rbf.layer_norm_rbf(*tensors, norm.eps, base, module, asked)


def is_linear(module: nn.Module) -> bool:
    """Return whether a GEMM with its weight is all that a call of it would do."""
    return type(module).forward is nn.Linear.forward and not watched(module)


def _empty(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Make an nn.Linear whose values are still to be set."""
    made: nn.Linear = nn.utils.skip_init(
        nn.Linear, inputs, outputs, bias=bias, device=torch.get_default_device()
    )
    return made


class RadialBasisFunction(nn.Module):
    """A module of Gaussians: exp(-((x - c) / denominator)^2) for num_grids centres c.

    Args:
        grid_min, grid_max, num_grids: the centres, evenly from one to the other.
        denominator: the width; None takes the distance of neighbouring centres.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> RadialBasisFunction(0, 1, 2)(torch.tensor([0.0]))
        tensor([[1.0000, 0.3679]])
    """

    def __init__(
        self,
        grid_min: float = -2.0,
        grid_max: float = 2.0,
        num_grids: int = 8,
        denominator: float | None = None,
    ) -> None:
        super().__init__()
        checks.interval("grid_range", (grid_min, grid_max))
        least = 2 if denominator is None else 1
        self.num_grids = checks.integer("num_grids", num_grids, least, MAX_FUNCTIONS)
        self.grid_min, self.grid_max = float(grid_min), float(grid_max)
        self.grid = nn.Parameter(torch.empty(self.num_grids), requires_grad=False)
        if denominator is None:
            denominator = (self.grid_max - self.grid_min) / (self.num_grids - 1)
        self.denominator = checks.nonnegative("denominator", denominator)
        if self.denominator == 0:
            raise ValueError("denominator: got 0, expected a positive width or None")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Spread the centres evenly from grid_min to grid_max."""
        self.grid.copy_(torch.linspace(self.grid_min, self.grid_max, self.num_grids))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (...) to (..., num_grids), dense, in plain torch."""
        return torch.exp(-((x.unsqueeze(-1) - self.grid) / self.denominator).square())


class FastKANLayer(nn.Module):
    """A layer of FastKAN: spline_linear(gaussians(layernorm(x))) + base_linear(base_activation(x)).

    Args:
        input_dim, output_dim: positive sizes; input_dim above 1 where there is a layernorm.
        grid_min, grid_max, num_grids: the centres.
        use_base_update: whether there is the second term.
        use_layernorm: whether the Gaussians see the normalised x.
        base_activation: a function, a module, or a module's class.
        spline_weight_init_scale: deviation of the first weights.
        backend: as for KANLinear.

    State dict: layernorm.weight and .bias (in), rbf.grid (num_grids), base_linear.weight (out, in) and .bias
    (out), spline_linear.weight (out, in * num_grids), which the kernels read as it lies.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> FastKANLayer(2, 3)(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        grid_min: float = -2.0,
        grid_max: float = 2.0,
        num_grids: int = 8,
        use_base_update: bool = True,
        use_layernorm: bool = True,
        base_activation: _Activation | type[nn.Module] = functional.silu,
        spline_weight_init_scale: float = 0.1,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim = checks.integer("input_dim", input_dim, 1)
        self.output_dim = output_dim = checks.integer("output_dim", output_dim, 1)
        self.use_base_update = checks.boolean("use_base_update", use_base_update)
        use_layernorm = checks.boolean("use_layernorm", use_layernorm)
        dispatch.check_name("backend", backend)
        if use_layernorm and input_dim == 1:
            raise ValueError("use_layernorm: got True with input_dim=1, whose norm is 0; expected False")
        self.backend = backend
        self.layernorm = nn.LayerNorm(input_dim) if use_layernorm else None
        self.rbf = RadialBasisFunction(grid_min, grid_max, num_grids)
        scale = checks.nonnegative("spline_weight_init_scale", spline_weight_init_scale)
        self.spline_weight_init_scale = scale
        # no random numbers but those of reset_parameters, in its order
        self.spline_linear = _empty(input_dim * self.rbf.num_grids, output_dim, bias=False)
        if self.use_base_update:
            self.base_activation = _made(base_activation)
            self.base_linear = _empty(input_dim, output_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all parts: the splines' weights from a truncated normal, the others as torch does."""
        if self.layernorm is not None:
            self.layernorm.reset_parameters()
        self.rbf.reset_parameters()
        nn.init.trunc_normal_(self.spline_linear.weight, std=self.spline_weight_init_scale)
        if self.use_base_update:
            self.base_linear.reset_parameters()

    def forward(self, x: Tensor, use_layernorm: bool = True) -> Tensor:
        """Map x (..., input_dim) to y (..., output_dim); use_layernorm=False leaves the layernorm out."""
        checks.rows(x, self.input_dim)
        wanted = use_layernorm is True or checks.boolean("use_layernorm", use_layernorm)
        normalise = self.layernorm is not None and wanted
        rows = kernel_rows(self.rbf, self.input_dim) if self._fused() else None
        return evaluate(self, x, rows, normalise, self.backend)

    def _fused(self) -> bool:
        """Return whether the kernels compute all of it: no gradient of centres, nobody watches."""
        learns = self.rbf.grid.requires_grad and torch.is_grad_enabled()
        return not learns and not watched(self.rbf) and is_linear(self.spline_linear)

    def _dispatch_options(self) -> dict[str, Any] | str:
        sizes, weight = (self.input_dim, self.output_dim), self.spline_linear.weight
        if not self._fused():
            return (
                f"{sizes[0]} -> {sizes[1]} on {weight.device.type}, {weight.dtype}: plain torch, since the "
                "centres ask for a gradient, or rbf or spline_linear has hooks or another forward"
            )
        whole = self.layernorm is not None and not isinstance(one_op(self, sizes[0], self.backend), str)
        in_kernel = self.use_base_update and is_linear(self.base_linear) and (whole or self.layernorm is None)
        return {
            "op": "layer_norm_rbf" if whole else "kan_linear",
            "widths": sizes,
            "basis": "rbf",
            "functions": len(self.rbf.grid),
            "base": kernel_base(self.base_activation) if in_kernel else None,
            "device": weight.device,
            "dtype": weight.dtype,
            "backend": self.backend,
        }

    def plot_curve(
        self, input_index: int, output_index: int, num_pts: int = 1000, num_extrapolate_bins: int = 2
    ) -> tuple[Tensor, Tensor]:
        """Return the function that spline_linear puts on one edge: (x, y), num_pts each.

        x runs from num_extrapolate_bins widths before the first centre to as many after the last; it is what
        the Gaussians see, behind the layernorm.

        Raises:
            TypeError, ValueError: no such edge, or a number that is no count.
        """
        input_index = checks.integer("input_index", input_index, 0, self.input_dim - 1)
        output_index = checks.integer("output_index", output_index, 0, self.output_dim - 1)
        num_pts = checks.integer("num_pts", num_pts, 1)
        checks.nonnegative("num_extrapolate_bins", num_extrapolate_bins, math.inf)
        rbf, weight = self.rbf, self.spline_linear.weight.detach()
        edge = weight.view(self.output_dim, self.input_dim, rbf.num_grids)[output_index, input_index]
        margin = num_extrapolate_bins * rbf.denominator
        x = torch.linspace(rbf.grid_min - margin, rbf.grid_max + margin, num_pts, device=edge.device)
        return x, rbf(x.to(edge.dtype)) @ edge


def _made(activation: _Activation | type[nn.Module]) -> _Activation:
    return activation() if isinstance(activation, type) else activation


class FastKAN(nn.Module):
    """A stack of FastKANLayer, in `layers`.

    Args:
        layers_hidden: at least two positive sizes, from the input's to the output's.
        grid_min, grid_max, num_grids, use_base_update, base_activation, spline_weight_init_scale, backend: as
            for FastKANLayer, the same for every layer.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> FastKAN([2, 5, 1])(torch.zeros(4, 2)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        layers_hidden: Sequence[int],
        grid_min: float = -2.0,
        grid_max: float = 2.0,
        num_grids: int = 8,
        use_base_update: bool = True,
        base_activation: _Activation | type[nn.Module] = functional.silu,
        spline_weight_init_scale: float = 0.1,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FastKANLayer(
                fan_in,
                fan_out,
                grid_min,
                grid_max,
                num_grids,
                use_base_update,
                base_activation=base_activation,
                spline_weight_init_scale=spline_weight_init_scale,
                backend=backend,
            )
            for fan_in, fan_out in pairwise(checks.widths(layers_hidden, "layers_hidden"))
        )

    if TYPE_CHECKING:

        @property
        def layers(self) -> Layers[FastKANLayer]: ...
        @layers.setter
        def layers(self, layers: nn.ModuleList) -> None: ...

    def reset_parameters(self) -> None:
        """Initialise every layer anew."""
        for layer in self.layers:
            layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., layers_hidden[0]) to y (..., layers_hidden[-1])."""
        for layer in self.layers:
            x = layer(x)
        return x
