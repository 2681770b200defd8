"""ChebyKAN's ChebyKANLayer (github.com/SynodicMonth/ChebyKAN), recognised by its structure.

A layer has cheby_coeffs (in, out, degree + 1), inputdim, outdim and degree, and a forward that names the
first. Copies may have been edited, so its own code must give the kernels' numbers on a probe.

The peer differentiates acos: where tanh saturates, its gradient is NaN, and the kernels' is the limit, 0.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..compat import cheby_kan, code_names, eligible
from ..contract import MAX_FUNCTIONS
from . import Accelerated, overrides, probe

NAME = "ChebyKAN"

_SIZES = ("inputdim", "outdim", "degree")
_CODE = ("cheby_coeffs",)
_ATTRIBUTES = frozenset(_SIZES)  # beside the tensors


class ChebyKANLayer(Accelerated):
    """forward on the kernels."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if _why_not(self, x) is not None:
            return super().forward(x)  # type: ignore[misc]
        return cheby_kan.evaluate(x, self.cheby_coeffs)

    def _kan_kernels_fallback(self) -> str | None:
        return _why_not_now(self)

    _kan_kernels_note = Accelerated._kan_kernels_for_now


def claims(module: nn.Module) -> bool:
    """Whether the coefficients and the sizes are there."""
    return all(hasattr(module, name) for name in (*_CODE, *_SIZES))


def reason(module: nn.Module) -> str | None:
    """Why this layer is left alone, or None."""
    if isinstance(module, cheby_kan.ChebyKANLayer):
        return "is the drop-in of kan_kernels and runs the kernels already"
    owner = probe.owner_by_code(module, _CODE)
    if owner is None:
        return "no class of it has a forward that names cheby_coeffs"
    return (
        overrides(module, owner, ("forward",)) or _why_other(module) or _why_code(module) or _differs(module)
    )


def mixin(module: nn.Module) -> type[Accelerated]:
    return ChebyKANLayer


def _why_not(layer: Any, x: object) -> str | None:
    coefficients = layer.cheby_coeffs
    if not isinstance(x, Tensor):
        return f"x is no tensor but {type(x).__name__}"
    # the peer's rows are whatever `view(-1, inputdim)` makes of x: an image becomes one
    if x.numel() % coefficients.shape[0]:
        return f"x has shape {tuple(x.shape)}, expected a multiple of {coefficients.shape[0]} entries"
    return eligible.why_not_like(x, coefficients) or _why_not_now(layer)


def _why_not_now(layer: Any) -> str | None:
    """Why the kernels cannot run the layer as it is now, whatever the input, or None."""
    coefficients = layer.cheby_coeffs
    expected = (layer.inputdim, layer.outdim, layer.degree + 1)
    if tuple(coefficients.shape) != expected:
        return f"cheby_coeffs is {tuple(coefficients.shape)}, inputdim, outdim, degree + 1 are {expected}"
    why = eligible.why_not_tensors(coefficients, (coefficients,))
    return why if why is not None or torch.compiler.is_compiling() else _why_code(layer)


def _why_code(layer: Any) -> str | None:
    return code_names.why_not(layer, NAME, ("forward",), _ATTRIBUTES)


def _why_other(module: Any) -> str | None:
    """What does not fit the peer's tensors and sizes."""
    if "parametrizations" in module._modules:
        return "is parametrized; accelerate first, then parametrize"
    degree = module.degree
    if isinstance(degree, bool) or not isinstance(degree, int) or not 0 <= degree < MAX_FUNCTIONS:
        return f"degree is {degree!r}, the kernels have 0 to {MAX_FUNCTIONS - 1}"
    shape = (module.inputdim, module.outdim, degree + 1)
    return probe.wrong_shape(module, {"cheby_coeffs": shape}) or probe.more_than(
        module, {"cheby_coeffs", "arange"}
    )


_IN, _OUT = 3, 2  # at most, of a probe
_RANGE = 2.0  # of its inputs: the peer's acos loses digits where tanh comes near 1


def _differs(module: Any) -> str | None:
    fan_in, fan_out = min(_IN, module.inputdim), min(_OUT, module.outdim)

    def make(generator: torch.Generator) -> tuple[Any, Tensor]:
        shapes = {"cheby_coeffs": (fan_in, fan_out, module.degree + 1)}
        buffers = {} if "arange" not in module._buffers else {"arange": torch.arange(module.degree + 1)}
        clone = probe.clone(module, shapes, generator, buffers)
        clone.inputdim, clone.outdim = fan_in, fan_out
        high = torch.full((fan_in,), _RANGE, dtype=torch.float64, device="cpu")
        return clone, probe.inputs(-high, high, generator)

    return probe.differs(
        NAME, make, type(module).forward, lambda clone, x: cheby_kan.evaluate(x, clone.cheby_coeffs)
    )
