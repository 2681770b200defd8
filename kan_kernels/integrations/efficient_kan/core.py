"""What a layer in efficient-kan's layout computes, on the kernels: shared by the adapter and the drop-in.

A layer here has base_weight (out, in), spline_weight (out, in, G+k), grid (in, G+2k+1), perhaps spline_scaler
(out, in), and base_activation, a callable. Facts of github.com/Blealtan/efficient-kan 7b6ce1c (MIT):

    y = base_weight base_activation(x) + (spline_weight spline_scaler) B(x)

and `update_grid` stores the coefficients of the *scaled* spline as the new spline_weight: with a scaler the
function changes by it. That is kept, since the numbers are the peer's.
"""

from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from ... import functional as F
from ..._core import checks, library
from ..._core.tensor_cache import TensorCache, readable
from ...refit import solve_banded
from .._shared import eligible

_BASES: dict[Any, str] = {nn.SiLU: "silu", nn.Identity: "identity"}


def kernel_base(activation: object) -> str | None:
    """Return the kernels' name of a base activation, or None where its own code has to run.

    A module with hooks runs by itself, so that they see it; SiLU in place changes what the spline sees.
    """
    if activation is torch_functional.silu:
        return "silu"
    name = _BASES.get(type(activation))
    if name is None or getattr(activation, "inplace", False):
        return None
    assert isinstance(activation, nn.Module)
    return None if eligible.watched(activation) else name


def scaled_weight(layer: Any) -> Tensor:
    """Return spline_weight, times spline_scaler where the layer has one: (out, in, G+k)."""
    if layer.enable_standalone_scale_spline:
        return layer.spline_weight * layer.spline_scaler.unsqueeze(-1)
    return layer.spline_weight


def kernel_weight(layer: Any) -> Tensor:
    """Return the scaled spline weight as the kernels want it: contiguous (in, G+k, out)."""
    return scaled_weight(layer).permute(1, 2, 0).contiguous()


def forward(layer: Any, x: Tensor) -> Tensor:
    """Map x (..., in) to y (..., out), by the kernels; `why_not` must have nothing against it."""
    weight, knots = kernel_weight(layer), _own_knots(layer.grid)
    activation = layer.base_activation
    base = kernel_base(activation)
    if base is not None:
        return F.kan_linear(
            x,
            weight,
            knots,
            spline_order=layer.spline_order,
            base_weight=layer.base_weight.t().contiguous(),
            base=base,
        )
    rows = x.reshape(-1, x.shape[-1])
    y = torch_functional.linear(activation(rows), layer.base_weight)
    y = y + F.kan_linear(rows, weight, knots, spline_order=layer.spline_order, base=None)
    return y.reshape(*x.shape[:-1], y.shape[-1])


_knots: TensorCache[Tensor] = TensorCache()


def _own_knots(grid: Tensor) -> Tensor:
    """Return the knots on the CPU in memory of our own, the same tensor until they change; else themselves.

    Autograd saves it, and a layer's knots may be moved between its forward and its backward pass. Torch does
    not count writes through `.data`: so values are compared, for which a GPU would have to be waited for.
    """
    if not grid.is_cpu or grid.requires_grad or not readable(grid):
        return grid
    kept = _knots.get(grid)
    if kept is None or not torch.equal(kept, grid):
        with torch.inference_mode(False):  # a later training step saves it
            kept = grid.detach().clone()
        _knots.put(grid, kept)
    return kept


def why_not(layer: Any, x: object) -> str | None:
    """Return why the kernels cannot compute the layer's numbers for this input, or None."""
    weight = layer.spline_weight
    return eligible.why_not_rows(x, weight, weight.shape[1]) or why_not_now(layer)


def why_not_now(layer: Any) -> str | None:
    """Return why the kernels cannot run the layer as it is now, whatever the input, or None."""
    weight, grid = layer.spline_weight, layer.grid
    tensors = [weight, layer.base_weight, grid]
    if layer.enable_standalone_scale_spline:
        tensors.append(layer.spline_scaler)
    why = eligible.why_not_tensors(weight, tensors)
    if why is not None:
        return why
    if grid.requires_grad:
        return "the grid asks for a gradient, which the kernels do not compute"
    expected = (weight.shape[1], weight.shape[2] + layer.spline_order + 1)
    if tuple(grid.shape) != expected:
        return f"the grid has shape {tuple(grid.shape)}, expected {expected}"
    if torch.compiler.is_compiling():
        return None
    if not increasing(grid):
        return "knots coincide, decrease or are not finite: the peer divides by zero there"
    return None


def increasing(grid: Tensor) -> bool:
    """Return whether all knots are finite and strictly increasing.

    Where there are no values to look at, or only traced ones, they are taken for good.
    """
    if not readable(grid):
        return True
    if library.LOAD_ERROR is None and grid.is_cpu:
        knots = grid.float() if grid.dtype in checks.HALF_DTYPES else grid
        return bool(torch.ops.kan_kernels.knots_increase(knots))
    with torch.no_grad():
        return bool((torch.isfinite(grid).all() & (grid.diff(dim=1) > 0).all()).item())


def placed_knots(x: Tensor, grid_size: int, order: int, grid_eps: float, margin: float) -> Tensor:
    """Return the peer's new knots for inputs x (B, in), in x's dtype: (in, G+2k+1).

    G+1 of the sorted samples, blended with G+1 uniform points on [min - margin, max + margin], of which there
    is grid_eps; k more knots on each side continue by the uniform step.
    """
    ordered = x.sort(dim=0).values
    low, high = ordered[0], ordered[-1]
    index = torch.linspace(0, len(x) - 1, grid_size + 1, dtype=torch.int64, device=x.device)
    step = (high - low + 2 * margin) / grid_size
    count = torch.arange(grid_size + 1, dtype=torch.float32, device=x.device).unsqueeze(1)
    inner = grid_eps * (count * step + low - margin) + (1 - grid_eps) * ordered[index]
    outside = torch.arange(1, order + 1, device=x.device).unsqueeze(1) * step
    return torch.cat([inner[:1] - outside.flip(0), inner, inner[-1:] + outside]).t()


@torch.no_grad()
def moved(layer: Any, x: Tensor, margin: float) -> tuple[Tensor, Tensor] | None:
    """Return the new knots (in, G+2k+1) and spline_weight (out, in, G+k) of `update_grid`, by Gram matrices.

    None where they would not be the numbers of the peer's least squares: a problem without one
    well-determined solution (empty cells, few samples, a constant feature), for which LAPACK's gelsy returns
    the shortest. It cuts singular values below eps max(B, G+k) off, so the condition may be a tenth of that.
    """
    if (
        x.dim() != 2
        or len(x) == 0
        or x.is_meta
        or why_not(layer, x) is not None
        or x.dtype in checks.HALF_DTYPES
    ):
        return None
    order = layer.spline_order
    knots = placed_knots(x, layer.grid_size, order, layer.grid_eps, margin).contiguous()
    if not bool(((knots.diff(dim=1) > 0).all() & knots.isfinite().all()).item()):
        return None
    old, new = layer.grid.double(), knots.double()
    rows = x.double()
    band = F.basis_gram(rows, new, order)
    if not well_determined(band, len(x), x.dtype):
        return None
    across = F.basis_gram(rows, new, order, other_grid=old)
    coefficients = kernel_weight(layer).double()
    weight = solve_banded(band, torch.bmm(across, coefficients))
    return knots, weight.to(x.dtype).movedim(-1, 0)


_GRAM_CONDITION = 1e4  # of the design matrix: the Gram matrix has its square, and float64 keeps eight digits


def well_determined(band: Tensor, samples: int, dtype: torch.dtype) -> bool:
    """Return whether every feature's design matrix is of full rank, far from what gelsy would cut off."""
    features, n, width = band.shape
    full = band.new_zeros(features, n, n)
    for d in range(min(width, n)):
        diagonal = band[:, : n - d, d]
        full.diagonal(d, 1, 2).copy_(diagonal)
        full.diagonal(-d, 1, 2).copy_(diagonal)
    values = torch.linalg.eigvalsh(full)
    limit = min(0.1 / (torch.finfo(dtype).eps * max(samples, n)), _GRAM_CONDITION)
    smallest, largest = values[:, 0], values[:, -1]
    return bool((smallest * limit**2 > largest).all().item())
