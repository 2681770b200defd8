"""pykan's KANLayer on the kernels.

    y[b,o] = sum_i mask[i,o] (scale_base[i,o] base_fun(x[b,i]) + scale_sp[i,o] sum_r coef[i,o,r] B_r(x[b,i]))

A layer of `kan_linear` with spline_weight[i,r,o] = mask scale_sp coef and base_weight = mask scale_base.
"""

import contextlib
import importlib
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import functional as F
from ..._core.bases import MAX_SPLINE_ORDER
from ..._core.function import func_or_forward_mode, transforming
from .. import accelerate
from .._shared.accelerated import Accelerated, traced
from .._shared.converted import regular_inputs
from .._shared.eligible import watched_everywhere
from ..efficient_kan.core import kernel_base, well_determined
from .code import is_its_own, is_zero, why_not_its_code
from .lazy import LazyTensor

_DTYPES = (torch.float32, torch.float64)


class Weights(NamedTuple):
    """A layer as `kan_linear` takes it, in memory of its own: pykan may write to what it came from."""

    coef: Tensor  # (in, G+k, out), unscaled
    spline: Tensor  # (in, G+k, out)
    base: Tensor  # (in, out)
    grid: Tensor  # (in, G+2k+1)
    order: int
    base_name: str

    def detach(self) -> "Weights":
        """Return the same without gradients."""
        tensors = (self.coef.detach(), self.spline.detach(), self.base.detach())
        return Weights(*tensors, self.grid, self.order, self.base_name)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, in) to y (B, out)."""
        with _without_autocast(x):
            return F.kan_linear(
                x, self.spline, self.grid, spline_order=self.order, base_weight=self.base, base=self.base_name
            )

    def splines(self, x: Tensor) -> Tensor:
        """Return sum_r coef[i,o,r] B_r(x[b,i]), dense, (B, out, in), by pykan's own function."""
        return _splines(self.grid, self.order, x, self.coef)

    def activations(self, x: Tensor) -> Tensor:
        """Return what every edge adds to its output, dense, (B, out, in)."""
        return _activations(self.grid, self.order, self.base_name, x, self.spline, self.base)

    def deferred(self, x: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return `activations` and `splines`, of this shape, each computed when something reads it."""
        activations = partial(_activations, self.grid, self.order, self.base_name)
        splines = partial(_splines, self.grid, self.order)
        return LazyTensor(shape, activations, x, self.spline, self.base), LazyTensor(
            shape, splines, x, self.coef
        )

    def base_values(self, x: Tensor) -> Tensor:
        """Return the base activation, like x."""
        return _base_values(self.base_name, x)


def _base_values(name: str, x: Tensor) -> Tensor:
    return nn.functional.silu(x) if name == "silu" else x


def _splines(grid: Tensor, order: int, x: Tensor, coef: Tensor) -> Tensor:
    return _pykan_spline().coef2curve(x, grid, coef.transpose(1, 2), order).transpose(1, 2)


def _activations(grid: Tensor, order: int, base_name: str, x: Tensor, spline: Tensor, base: Tensor) -> Tensor:
    base_values = _base_values(base_name, x).unsqueeze(1) * base.T
    return _splines(grid, order, x, spline) + base_values


def unsupported(layer: Any) -> str | None:
    """Return why the kernels do not compute this layer, or None. The knots' values are not looked at."""
    if isinstance(layer.k, bool) or not isinstance(layer.k, int):
        return f"k is {layer.k!r}, expected an int"
    if not 1 <= layer.k <= MAX_SPLINE_ORDER:
        return f"k={layer.k}, the kernels take pykan's layers with k from 1 to {MAX_SPLINE_ORDER}"
    if base_of(layer.base_fun) is None:
        name = getattr(layer.base_fun, "__qualname__", type(layer.base_fun).__qualname__)
        return f"base_fun is {name}, the kernels have pykan's 'silu', 'identity' and 'zero' without hooks"
    grid, coef = layer.grid, layer.coef
    for name in ("grid", "coef", "scale_base", "scale_sp", "mask"):
        tensor = getattr(layer, name)
        if name == "mask" and torch.promote_types(tensor.dtype, coef.dtype) == coef.dtype:
            continue  # pykan's prune_edge leaves a float32 mask in a float64 model
        if tensor.dtype not in _DTYPES:
            return f"{name} is {tensor.dtype}, the kernels take pykan's layers in float32 and float64"
        if tensor.dtype != coef.dtype or tensor.device != coef.device:
            return (
                f"{name} is {tensor.dtype} on {tensor.device}, coef {coef.dtype} on {coef.device}: "
                "expected the same"
            )
    if grid.requires_grad:
        return "grid requires grad, the kernels have no gradient for knots"
    for name in ("scale_base", "scale_sp", "mask"):
        if getattr(layer, name).shape != coef.shape[:2]:
            return f"{name} is {tuple(getattr(layer, name).shape)}, expected {tuple(coef.shape[:2])}"
    if coef.shape[::2] != (grid.shape[0], grid.shape[1] - layer.k - 1):
        return f"coef {tuple(coef.shape)} does not fit grid {tuple(grid.shape)} with k={layer.k}"
    return None


def has_own_call(layer: nn.Module) -> bool:
    """Return whether calling the layer does more than its class's forward: hooks, or another forward."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or watched_everywhere()
        or "forward" in layer.__dict__
        or type(layer).__call__ is not nn.Module.__call__
    )


class AcceleratedLayer(Accelerated):
    """The methods that replace those of a KANLayer."""

    # of the KANLayer this is mixed into
    k: int
    base_fun: Any
    grid: nn.Parameter
    coef: nn.Parameter
    scale_base: nn.Parameter
    scale_sp: nn.Parameter
    mask: nn.Parameter
    grid_eps: float

    def forward(self, x: Tensor) -> Any:
        """Return y (B, out), and dense (B, out, in): the inputs, what each edge adds, the unscaled splines.

        The last two are computed when something reads them; as parts of a larger graph (torch.compile,
        torch.func) at once.
        """
        weights = None if traced(x) else self._kan_kernels_weights(x)
        if weights is None:
            return super().forward(x)
        y = weights.forward(x.to(weights.spline.dtype))
        own = x.unsqueeze(1).clone()
        preacts = own.expand(-1, y.shape[1], -1)
        kept = own.squeeze(1).to(weights.spline.dtype)
        if torch.compiler.is_compiling() or func_or_forward_mode():
            return y, preacts, weights.activations(kept), weights.splines(kept)
        return y, preacts, *weights.deferred(kept, preacts.shape)

    def update_grid_from_samples(self, x: Tensor, mode: str = "sample") -> None:
        """Place knots at the samples' quantiles, blended with uniform ones; refit the coefficients.

        Least squares is linear in what is fitted, so the old basis is fitted, once for each input and not for
        each edge: A^+ (B c) = (A^+ B) c. Where there are many solutions, or rounding decides (few samples,
        tight clusters, constant inputs), pykan's own code chooses.
        """
        own = is_its_own(self, "KANLayer", "update_grid_from_samples")
        if not own or _unusable(self, x) is not None or not self._kan_kernels_refit(x, mode):
            super().update_grid_from_samples(x, mode)  # type: ignore[misc]

    def _kan_kernels_refit(self, x: Tensor, mode: str) -> bool:
        """Do as `update_grid_from_samples`, unless the least squares are not well determined."""
        with torch.no_grad():
            old = self.grid.detach()
            cells = old.shape[1] - 1 - 2 * self.k
            samples = torch.sort(x.detach(), dim=0).values
            knots = self._kan_kernels_knots(samples, cells)
            points = self._kan_kernels_knots(samples, 2 * cells).T if mode == "grid" else samples
            spline = _pykan_spline()
            new = spline.extend_grid(knots, k_extend=self.k)
            if not regular_inputs(new, flat=False).all():
                return False
            band = F.basis_gram(points.double(), new.double(), self.k)
            if not well_determined(band, len(points), points.dtype):
                return False
            target = spline.B_batch(points, old, self.k).transpose(0, 1)
            fitted = torch.linalg.lstsq(spline.B_batch(points, new, self.k).transpose(0, 1), target).solution
            coef = torch.einsum("inm,iom->ion", fitted, self.coef)
            self.grid.data, self.coef.data = new, coef
        return True

    def get_subset(self, in_id: Any, out_id: Any) -> Any:
        """Return pykan's smaller layer, accelerated too."""
        part = super().get_subset(in_id, out_id)  # type: ignore[misc]
        accelerate(part)
        return part

    def _kan_kernels_knots(self, samples: Tensor, cells: int) -> Tensor:
        """Return (in, cells+1): between the sorted samples' quantiles and uniform knots over their range."""
        batch = samples.shape[0]
        picked = [int(batch / cells * i) for i in range(cells)]
        quantiles = samples[[*picked, -1]].T
        first, last = quantiles[:, :1], quantiles[:, -1:]
        uniform = first + (last - first) / cells * torch.arange(cells + 1, device=samples.device)
        return self.grid_eps * uniform + (1 - self.grid_eps) * quantiles

    def _kan_kernels_weights(self, x: Tensor) -> Weights | None:
        """Return what the kernels run on, or None where pykan's own code has to run."""
        if _unusable(self, x) is not None:
            return None
        base = base_of(self.base_fun)
        assert base is not None
        grid = _knots(self)
        if grid is None:
            return None
        mask = self.mask.to(self.coef.dtype)
        coef = self.coef.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        spline = coef * (self.scale_sp * mask).unsqueeze(1)
        base_weight = self.scale_base * mask
        name, factor = base
        if factor != 1.0:
            base_weight = base_weight * factor
        return Weights(coef, spline, base_weight, grid, self.k, name)

    def _kan_kernels_attach(self) -> None:
        _pykan_spline()

    def _kan_kernels_judge(self) -> tuple[str | None, frozenset[int] | None]:
        return why_not_its_code(self._kan_kernels_original, "KANLayer", "forward"), None

    def _kan_kernels_fallback(self) -> str | None:
        why = self._kan_kernels_left or unsupported(self)
        if why is None and _knots(self) is None:
            why = "grid has knots that coincide, decrease or are not finite"
        return why


def _unusable(layer: Any, x: object) -> str | None:
    """Return why pykan's own code has to run on this input, or None."""
    why = layer._kan_kernels_left or unsupported(layer)
    if why is not None:
        return why
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != layer.coef.shape[0]:
        return "x is not a tensor (batch, in_dim)"
    if x.device != layer.coef.device:
        return f"x is on {x.device}, coef on {layer.coef.device}"
    if x.dtype != layer.coef.dtype and not torch.is_autocast_enabled(x.device.type):
        return f"x is {x.dtype}, coef {layer.coef.dtype}"
    return None


def base_of(base_fun: Any) -> tuple[str, float] | None:
    """Return the kernels' base and a factor of its weight for a base function of pykan's; None for others."""
    name = kernel_base(base_fun)
    if name is not None:
        return name, 1.0
    # NaN where x is not finite, and scale_base gets a gradient of zeros
    return ("identity", 0.0) if is_zero(base_fun) else None


def _knots(layer: Any) -> Tensor | None:
    """Return the knots in a tensor of our own, the same one until they change; None where unusable.

    pykan writes into `grid.data`, which no version counter sees: so their values are compared.
    """
    grid = layer.grid.detach()
    if torch.compiler.is_compiling() or transforming():
        return grid
    kept = layer.__dict__.get("_kan_kernels_grid")
    if (
        kept is not None
        and kept.dtype == grid.dtype
        and kept.device == grid.device
        and torch.equal(kept, grid)
    ):
        return kept
    with torch.inference_mode(False):  # a later training step saves them for its backward pass
        kept = grid.clone()
    if not regular_inputs(kept, flat=True).all():
        return None  # where some knots coincide pykan drops whole bases: NaN to 0 after summing
    layer.__dict__["_kan_kernels_grid"] = kept
    return kept


def _without_autocast(x: Tensor) -> Any:
    """Run a method without autocast: pykan's layer returns its parameters' dtype under it too."""
    if not torch._C._is_any_autocast_enabled():
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


_spline: Any = None


def _pykan_spline() -> Any:
    """Return kan.spline, imported by the first `accelerate`: torch.compile does not trace an import."""
    global _spline
    if _spline is None:
        _spline = importlib.import_module("kan.spline")
    return _spline
