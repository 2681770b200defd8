"""efficient-kan's KANLinear, recognised by its structure: it is not on PyPI and lives as copies elsewhere.

A class is taken for the peer's if it defines the four methods and has the tensors of one. Since a copy may
have been edited, a layer is only taken if its own code gives the kernels' numbers, to float64, on a probe: a
clone with few features, random weights and knots like the layer's.
"""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..compat.efficient_kan import KANLinear as DropIn
from . import Accelerated, efficient_kan_core, mro_class, overrides

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
        notes = []
        fallback = self._kan_kernels_fallback()
        if fallback is not None:
            notes.append(f"for now its own code runs, since {fallback}")
        if efficient_kan_core.kernel_base(self.base_activation) is None:
            notes.append(f"the base activation {_name(self.base_activation)} is computed by its own code")
        if not isinstance(self, EfficientKANLinearWithGrid):
            notes.append("update_grid is its own")
        return "; ".join(notes)


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
    return why or _why_other(module) or _differs(module)


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
    for name, shape in shapes.items():
        value = getattr(module, name, None)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            return f"{name} is {got}, expected {shape}"
    if "parametrizations" in module._modules:
        return "is parametrized; accelerate first, then parametrize"
    if not callable(module.base_activation):
        return f"base_activation is {module.base_activation!r}, expected a callable"
    extra = {*module._parameters, *module._buffers, *module._modules} - {*shapes, "base_activation"}
    if extra:
        return f"has more than the peer's tensors: {', '.join(sorted(extra))}"
    return None


def _name(activation: object) -> str:
    return getattr(activation, "__name__", None) or type(activation).__name__


# The probe. A clone has the peer's code and the layer's attributes, but few features and cells, and tensors
# of its own: float64 on the CPU, random weights, a window of the layer's knots.

_IN, _OUT, _CELLS, _ROWS = 3, 2, 6, 128
_TOLERANCE = 1e-9  # of the largest entry: float64 rounding of both, far below any edited formula


def _clone(module: Any, generator: torch.Generator) -> Any:
    clone = object.__new__(type(module))
    clone.__dict__.update(module.__dict__)
    clone.in_features, clone.out_features = min(_IN, module.in_features), min(_OUT, module.out_features)
    clone.grid_size = min(_CELLS, module.grid_size)
    shape = clone.out_features, clone.in_features, clone.grid_size + clone.spline_order
    shapes = {"base_weight": shape[:2], "spline_weight": shape}
    if module.enable_standalone_scale_spline:
        shapes["spline_scaler"] = shape[:2]
    clone._parameters = {
        name: nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64, device="cpu"))
        for name, size in shapes.items()
    }
    knots = shape[2] + clone.spline_order + 1
    grid = torch.arange(knots, dtype=torch.float64, device="cpu").expand(shape[1], -1) / knots
    own = module.grid.detach()[: shape[1], :knots]
    if not own.is_meta:
        own = own.double().cpu()
        if bool((own.diff(dim=1) > 0).all()):  # others run the peer's code, whatever the probe says
            grid = own
    clone._buffers = {"grid": grid.clone()}
    clone._modules = {name: copy.deepcopy(child).double().cpu() for name, child in module._modules.items()}
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(clone, hooks, {})
    return clone


def _inputs(grid: Tensor, generator: torch.Generator) -> Tensor:
    """Inside the knots, in the extension cells, outside, and on a knot."""
    low, high = grid[:, 0], grid[:, -1]
    x = torch.rand(_ROWS, len(grid), generator=generator, dtype=torch.float64, device="cpu")
    x = low + (high - low) * (1.2 * x - 0.1)
    x[0] = grid[:, grid.shape[1] // 2]
    return x


def _isolated(probe: Any) -> Any:
    """Run a probe whatever the caller's modes are, and leave the random state as it is."""

    @functools.wraps(probe)
    def run(module: nn.Module) -> Any:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=[]),
        ):
            return probe(module)

    return run


def _same(got: Any, want: Any) -> bool:
    return got.shape == want.shape and bool(
        ((got - want).abs() <= _TOLERANCE * want.abs().max().clamp_min(1.0)).all()
    )


@_isolated
def _differs(module: Any) -> str | None:
    """Whether the layer's own code computes anything but the kernels' numbers: y and its gradients."""
    try:
        for training in (True, False):
            generator = torch.Generator().manual_seed(7)
            clone = _clone(module, generator)
            clone.training = training
            x = _inputs(clone.grid, generator).requires_grad_()
            arguments = [x, *clone._parameters.values()]
            # each gets a copy of x: an activation may work in place
            own, ours = type(module).forward(clone, x.clone()), efficient_kan_core.forward(clone, x.clone())
            if not _same(ours, own):
                return "its forward computes something else than efficient-kan's (compared on a probe)"
            g = torch.randn(own.shape, generator=generator, dtype=torch.float64, device="cpu")
            gradients = zip(
                torch.autograd.grad(ours, arguments, g), torch.autograd.grad(own, arguments, g), strict=True
            )
            if not all(_same(*pair) for pair in gradients):
                return "its gradients are others than efficient-kan's (compared on a probe)"
    except Exception as error:  # whatever code the copy has
        return f"its forward could not be compared on a probe: {type(error).__name__}: {error}"
    return None


@_isolated
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
        return _same(new[0], clone.grid) and _same(new[1], clone.spline_weight.detach())
    except Exception:  # whatever code the copy has: it keeps its own method
        return False
