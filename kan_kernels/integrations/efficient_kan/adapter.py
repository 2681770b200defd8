"""efficient-kan's KANLinear (github.com/Blealtan/efficient-kan, MIT): it is not on PyPI and lives as copies
elsewhere.

A class is claimed for the peer's if it defines the four methods and has the tensors of one. It is taken if
its code is the peer's, or surely a formula that gives the kernels' numbers on a probe.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..._core.bases import MAX_SPLINE_ORDER
from .._shared import probe
from .._shared.accelerated import Accelerated, mro_class, overrides
from .._shared.cuts import features_of_clone
from .._shared.judge import judge, why_not_known
from .._shared.probe import Probe
from .._shared.subject import Subject
from . import core
from .layers import KANLinear as DropIn

NAME = "efficient-kan"

_METHODS = ("forward", "b_splines", "curve2coeff", "update_grid")
_SIZES = ("in_features", "out_features", "grid_size", "spline_order")
_TENSORS = ("grid", "base_weight", "spline_weight")
_OPTIONS = ("enable_standalone_scale_spline", "base_activation", "grid_eps")

SUBJECT = Subject(
    NAME,
    "forward",
    tensors=frozenset({*_TENSORS, "spline_scaler"}),
    knots=frozenset({"grid"}),
    options=frozenset({"spline_order", "enable_standalone_scale_spline"}),
    extents=frozenset({"in_features", "out_features", "grid_size"}),
    counted=frozenset({"spline_order"}),
    cells=frozenset({"grid_size"}),
    callables=frozenset({"base_activation"}),
)


class EfficientKANLinear(Accelerated):
    """A mixin with forward on the kernels."""

    _kan_kernels_watched = frozenset({"forward", "b_splines", "scaled_spline_weight"})

    def forward(self: Any, x: Tensor) -> Tensor:
        if self._kan_kernels_why_own_for(x) is None and core.why_not(self, x) is None:
            return core.forward(self, x)
        return super().forward(x)  # type: ignore[misc]

    def _kan_kernels_options(self: Any) -> tuple[Any, ...]:
        return self.spline_order, self.enable_standalone_scale_spline, self.base_activation

    def _kan_kernels_judge(self) -> tuple[str | None, frozenset[int] | None]:
        return _examine(self)

    def _kan_kernels_fallback(self) -> str | None:
        return self._kan_kernels_why_own() or core.why_not_now(self)

    def _kan_kernels_note(self: Any) -> str:
        notes = [self._kan_kernels_for_now()]
        if core.kernel_base(self.base_activation) is None:
            notes.append(f"the base activation {_name(self.base_activation)} is computed by its own code")
        if not isinstance(self, EfficientKANLinearWithGrid):
            notes.append("update_grid is its own")
        return "; ".join(filter(None, notes))


class EfficientKANLinearWithGrid(EfficientKANLinear):
    """A mixin with update_grid too, without a tensor (batch, in, out)."""

    @torch.no_grad()
    def update_grid(self: Any, x: Tensor, margin: float = 0.01) -> None:
        own = self._kan_kernels_left is not None or not isinstance(x, Tensor)
        own = own or not self.__dict__.keys().isdisjoint(("curve2coeff", "b_splines"))
        new = None if own else core.moved(self, x, margin)
        if new is None:
            return super().update_grid(x, margin)  # type: ignore[misc]
        self.grid.copy_(new[0])
        self.spline_weight.data.copy_(new[1])  # past autograd, as the peer does
        return None


def claims(module: nn.Module) -> bool:
    """Return whether a class of the module defines the peer's methods and it has tensors and sizes."""
    return _owner(module) is not None and not _missing(module)


def lacks(module: nn.Module) -> str | None:
    """Return what a layer with the peer's basis and tensors lacks of the peer's, or None."""
    own = mro_class(module, lambda cls: {"forward", "b_splines"} <= cls.__dict__.keys())
    if own is None or not {"grid", "spline_weight"} & {*module._parameters, *module._buffers}:
        return None
    missing = [name for name in _METHODS if not hasattr(module, name)] + _missing(module)
    return f"{NAME}: lacks {', '.join(missing)}, which {NAME}'s layers have" if missing else None


def _missing(module: nn.Module) -> list[str]:
    return [name for name in (*_SIZES, *_TENSORS, *_OPTIONS) if not probe.has(module, name)]


def _owner(module: nn.Module) -> type | None:
    return mro_class(module, lambda cls: all(name in cls.__dict__ for name in _METHODS))


def reason(module: nn.Module) -> str | None:
    """Return why this layer is left alone, or None."""
    if isinstance(module, DropIn):
        return "is the drop-in of kan_kernels and runs the kernels already"
    owner = _owner(module)
    assert owner is not None
    why = overrides(module, owner, ("forward", "b_splines", "scaled_spline_weight"))
    return why or _why_other(module) or _examine(module)[0]


def mixin(module: nn.Module) -> type[Accelerated]:
    """Return the fast methods for the module."""
    owner = _owner(module)
    assert owner is not None
    own = overrides(module, owner, ("update_grid", "curve2coeff"))
    if own is None and why_not_known(probe.own_class(module), NAME, "update_grid") is None:
        return EfficientKANLinearWithGrid
    return EfficientKANLinear


def _why_other(module: Any) -> str | None:
    """Return what does not fit the peer's tensors and sizes."""
    order, scaled = module.spline_order, module.enable_standalone_scale_spline
    if not isinstance(order, int) or not 0 <= order <= MAX_SPLINE_ORDER:
        return f"spline_order is {order!r}, the kernels have 0 to {MAX_SPLINE_ORDER}"
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


_CELLS = 6  # at most, of a probe


def _examine(module: Any) -> tuple[str | None, frozenset[int] | None]:
    """Return what is against the layer's code, read and run, or None; and the dims of x it is for."""
    verdict = judge(module, SUBJECT)
    if verdict.why is not None:
        return verdict.why, None
    options = _options(module)
    if not verdict.known and isinstance(module, Accelerated):
        module.__dict__["_kan_kernels_judged"] = module._kan_kernels_options()
    if verdict.known:  # its activation is called in one way
        options = (*options[:-1], *probe.kind_of(module.base_activation))
    own = probe.own_class(module).forward

    def make(generator: torch.Generator) -> tuple[Any, Tensor, Tensor]:
        clone = _clone(module, generator)
        return clone, probe.inputs(clone.grid[:, 0], clone.grid[:, -1], generator), clone.grid.t().clone()

    compared = Probe(NAME, make, own, core.forward, limits=True)
    return probe.stored((verdict.token, *options), lambda: probe.compare(compared, verdict.known))


def _options(module: Any) -> tuple[Any, ...]:
    """Return all that a clone is made of, the activation last."""
    scaled, activation = (
        bool(module.enable_standalone_scale_spline),
        probe.identity_of(module.base_activation),
    )
    return *_sizes(module), module.spline_order, scaled, activation


def _sizes(module: Any) -> tuple[int, int, int]:
    """Return features, outputs and cells of a clone: so many that code which cuts the first two shows it."""
    cells = min(_CELLS, module.grid_size)
    enough = features_of_clone(cells + 2 * module.spline_order + 1, module.spline_order)
    return min(enough, module.in_features), min(enough, module.out_features), cells


def _clone(module: Any, generator: torch.Generator) -> Any:
    """Make a layer with few features, on uneven cells, small ones too: code may add to their widths."""
    fan_in, fan_out, cells = _sizes(module)
    shape = fan_out, fan_in, cells + module.spline_order
    shapes: dict[str, tuple[int, ...]] = {"base_weight": shape[:2], "spline_weight": shape}
    if module.enable_standalone_scale_spline:
        shapes["spline_scaler"] = shape[:2]
    steps = 0.5 + torch.rand(
        fan_in, shape[2] + module.spline_order + 1, generator=generator, dtype=torch.float64
    )
    widths = 0.4 * 10 ** (0.5 * (torch.arange(fan_in, dtype=torch.float64) % 7) - 3)
    grid = widths[:, None] * steps.cumsum(1)
    clone = probe.clone(module, shapes, generator, {"grid": grid - grid.mean(1, keepdim=True)})
    clone.in_features, clone.out_features, clone.grid_size = fan_in, fan_out, cells
    return clone
