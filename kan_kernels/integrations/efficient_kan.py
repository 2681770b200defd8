"""efficient-kan's KANLinear, recognised by its structure: it is not on PyPI and lives as copies elsewhere.

A class is taken for the peer's if it defines the four methods and has the tensors of one. Since a copy may
have been edited, a layer is only taken if its own code gives the kernels' numbers, to float64, on a probe: a
clone with few features, random weights and knots like the layer's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..compat import efficient_kan_core
from ..compat.efficient_kan import KANLinear as DropIn
from . import Accelerated, mro_class, overrides, probe

NAME = "efficient-kan"

_METHODS = ("forward", "b_splines", "curve2coeff", "update_grid")
_SIZES = ("in_features", "out_features", "grid_size", "spline_order")
_TENSORS = ("grid", "base_weight", "spline_weight")
_OPTIONS = ("enable_standalone_scale_spline", "base_activation", "grid_eps")


class EfficientKANLinear(Accelerated):
    """forward on the kernels."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if efficient_kan_core.why_not(self, x) is None:
            return efficient_kan_core.forward(self, x)
        return super().forward(x)  # type: ignore[misc]

    def _kan_kernels_fallback(self) -> str | None:
        return efficient_kan_core.why_not_now(self)

    def _kan_kernels_note(self: Any) -> str:
        notes = [self._kan_kernels_for_now()]
        if efficient_kan_core.kernel_base(self.base_activation) is None:
            notes.append(f"the base activation {_name(self.base_activation)} is computed by its own code")
        if not isinstance(self, EfficientKANLinearWithGrid):
            notes.append("update_grid is its own")
        return "; ".join(filter(None, notes))


class EfficientKANLinearWithGrid(EfficientKANLinear):
    """update_grid too, without a tensor (batch, in, out)."""

    @torch.no_grad()
    def update_grid(self: Any, x: Tensor, margin: float = 0.01) -> None:
        new = efficient_kan_core.moved(self, x, margin) if isinstance(x, Tensor) else None
        if new is None:
            return super().update_grid(x, margin)  # type: ignore[misc]
        self.grid.copy_(new[0])
        self.spline_weight.data.copy_(new[1])  # past autograd, as the peer does
        return None


def claims(module: nn.Module) -> bool:
    """Whether a class of the module defines the peer's methods, and its tensors and sizes are there."""
    return _owner(module) is not None and all(
        hasattr(module, name) for name in (*_SIZES, *_TENSORS, *_OPTIONS)
    )


def _owner(module: nn.Module) -> type | None:
    return mro_class(module, lambda cls: all(name in cls.__dict__ for name in _METHODS))


def reason(module: nn.Module) -> str | None:
    """Why this layer is left alone, or None."""
    if isinstance(module, DropIn):
        return "is the drop-in of kan_kernels and runs the kernels already"
    owner = _owner(module)
    assert owner is not None
    why = overrides(module, owner, ("forward", "b_splines", "scaled_spline_weight"))
    why = why or _why_other(module) or efficient_kan_core.why_not_its_code(module)
    return why or _differs(module)


def mixin(module: nn.Module) -> type[Accelerated]:
    owner = _owner(module)
    assert owner is not None
    own = overrides(module, owner, ("update_grid", "curve2coeff"))
    if own is None and _same_update(module):
        return EfficientKANLinearWithGrid
    return EfficientKANLinear


def _why_other(module: Any) -> str | None:
    """What does not fit the peer's tensors and sizes."""
    order, scaled = module.spline_order, module.enable_standalone_scale_spline
    if not isinstance(order, int) or not 0 <= order <= checks.MAX_SPLINE_ORDER:
        return f"spline_order is {order!r}, the kernels have 0 to {checks.MAX_SPLINE_ORDER}"
    fan_in, fan_out, rows = module.in_features, module.out_features, module.grid_size + order
    shapes = {
        "grid": (fan_in, rows + order + 1),
        "base_weight": (fan_out, fan_in),
        "spline_weight": (fan_out, fan_in, rows),
    }
    if scaled:
        shapes["spline_scaler"] = (fan_out, fan_in)
    why = probe.wrong_shape(module, shapes)
    if why is not None:
        return why
    if "parametrizations" in module._modules:
        return "is parametrized; accelerate first, then parametrize"
    if not callable(module.base_activation):
        return f"base_activation is {module.base_activation!r}, expected a callable"
    return probe.more_than(module, {*shapes, "base_activation"})


def _name(activation: object) -> str:
    return getattr(activation, "__name__", None) or type(activation).__name__


_IN, _OUT, _CELLS = 3, 2, 6  # at most, of a probe


def _clone(module: Any, generator: torch.Generator) -> Any:
    """With few features and cells, on a window of the layer's knots."""
    fan_in, fan_out = min(_IN, module.in_features), min(_OUT, module.out_features)
    cells = min(_CELLS, module.grid_size)
    shape = fan_out, fan_in, cells + module.spline_order
    shapes: dict[str, tuple[int, ...]] = {"base_weight": shape[:2], "spline_weight": shape}
    if module.enable_standalone_scale_spline:
        shapes["spline_scaler"] = shape[:2]
    knots = shape[2] + module.spline_order + 1
    grid = torch.arange(knots, dtype=torch.float64, device="cpu").expand(fan_in, -1) / knots
    own = module.grid.detach()[:fan_in, :knots]
    if not own.is_meta:
        own = own.double().cpu()
        if bool((own.diff(dim=1) > 0).all()):  # others run the peer's code, whatever the probe says
            grid = own
    clone = probe.clone(module, shapes, generator, {"grid": grid.clone()})
    clone.in_features, clone.out_features, clone.grid_size = fan_in, fan_out, cells
    return clone


def _inputs(grid: Tensor, generator: torch.Generator) -> Tensor:
    """Inside the knots, in the extension cells, outside, and on a knot."""
    x = probe.inputs(grid[:, 0], grid[:, -1], generator)
    x[0] = grid[:, grid.shape[1] // 2]
    return x


def _differs(module: Any) -> str | None:
    def make(generator: torch.Generator) -> tuple[Any, Tensor]:
        clone = _clone(module, generator)
        return clone, _inputs(clone.grid, generator)

    return probe.differs(NAME, make, type(module).forward, efficient_kan_core.forward)


@probe.isolated
def _same_update(module: Any) -> bool:
    """Whether the layer's own update_grid gives our numbers where the least squares have one solution."""
    generator = torch.Generator().manual_seed(11)
    try:
        clone = _clone(module, generator)
        x, margin = _inputs(clone.grid, generator), 0.05
        new = efficient_kan_core.moved(clone, x, margin)
        if new is None:
            return False
        type(module).update_grid(clone, x, margin)
        return probe.same(new[0], clone.grid) and probe.same(new[1], clone.spline_weight.detach())
    except Exception:  # whatever code the copy has: it keeps its own method
        return False
