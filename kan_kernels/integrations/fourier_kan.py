"""FourierKAN's NaiveFourierKANLayer (github.com/GistNoesis/FourierKAN, MIT), recognised by its structure.

A layer has fouriercoeffs (2, out, in, gridsize), its sizes, perhaps a bias (1, out), and a forward that names
the first. Copies may have been edited, so its own code must give the kernels' numbers on a probe.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..compat import code_names, eligible, fourier_kan
from ..contract import MAX_FREQUENCIES
from . import Accelerated, overrides, probe

NAME = "FourierKAN"

_SIZES = ("inputdim", "outdim", "gridsize", "addbias")
_CODE = ("fouriercoeffs",)


class NaiveFourierKANLayer(Accelerated):
    """forward on the kernels."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if _why_not(self, x) is not None:
            return super().forward(x)  # type: ignore[misc]
        return fourier_kan.evaluate(x, self.fouriercoeffs, self.bias if self.addbias else None)

    def _kan_kernels_fallback(self) -> str | None:
        return _why_not_now(self)

    _kan_kernels_note = Accelerated._kan_kernels_for_now


def claims(module: nn.Module) -> bool:
    """Whether the coefficients and the sizes are there."""
    return all(hasattr(module, name) for name in (*_CODE, *_SIZES))


def reason(module: nn.Module) -> str | None:
    """Why this layer is left alone, or None."""
    if isinstance(module, fourier_kan.NaiveFourierKANLayer):
        return "is the drop-in of kan_kernels and runs the kernels already"
    owner = probe.owner_by_code(module, _CODE)
    if owner is None:
        return "no class of it has a forward that names fouriercoeffs"
    why = overrides(module, owner, ("forward",)) or _why_other(module) or _why_not_its_code(module)
    return why or _differs(module)


def mixin(module: nn.Module) -> type[Accelerated]:
    return NaiveFourierKANLayer


def _why_not(layer: Any, x: object) -> str | None:
    coefficients = layer.fouriercoeffs
    why = eligible.why_not_rows(x, coefficients, layer.inputdim) or _why_not_now(layer)
    if why is None and x.dtype != coefficients.dtype:  # type: ignore[attr-defined]
        return f"x is {x.dtype}, the weights are {coefficients.dtype}"  # type: ignore[attr-defined]
    return why


def _why_not_now(layer: Any) -> str | None:
    """Why the kernels cannot run the layer as it is now, whatever the input, or None."""
    tensors = [layer.fouriercoeffs, *([layer.bias] if layer.addbias else [])]
    shapes = _shapes(layer.inputdim, layer.outdim, layer.gridsize, layer.addbias)
    why = probe.wrong_shape(layer, shapes) or eligible.why_not_tensors(layer.fouriercoeffs, tensors)
    if why is not None or torch.compiler.is_compiling():
        return why
    return _why_not_its_code(layer)


def _shapes(features: int, out: int, frequencies: int, biased: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"fouriercoeffs": (2, out, features, frequencies)}
    return shapes | {"bias": (1, out)} if biased else shapes


def _why_not_its_code(layer: Any) -> str | None:
    """Why the code that computes y is not, or not surely, the peer's, or None."""
    return code_names.why_not(layer, NAME, ("forward",), frozenset(_SIZES))


def _why_other(module: Any) -> str | None:
    """What does not fit the peer's tensors and sizes."""
    if "parametrizations" in module._modules:
        return "is parametrized; accelerate first, then parametrize"
    size = module.gridsize
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_FREQUENCIES:
        return f"gridsize is {size!r}, the kernels have 1 to {MAX_FREQUENCIES}"
    shapes = _shapes(module.inputdim, module.outdim, size, module.addbias)
    return probe.wrong_shape(module, shapes) or probe.more_than(module, shapes)


_IN, _OUT = 3, 2  # at most, of a probe
_RANGE = 4.0  # of its inputs: more than one period


def _differs(module: Any) -> str | None:
    fan_in, fan_out = min(_IN, module.inputdim), min(_OUT, module.outdim)

    def make(generator: torch.Generator) -> tuple[Any, Tensor]:
        shapes = _shapes(fan_in, fan_out, module.gridsize, module.addbias)
        clone = probe.clone(module, shapes, generator, {})
        clone.inputdim, clone.outdim = fan_in, fan_out
        high = torch.full((fan_in,), _RANGE, dtype=torch.float64, device="cpu")
        return clone, probe.inputs(-high, high, generator)

    def ours(clone: Any, x: Tensor) -> Tensor:
        return fourier_kan.evaluate(x, clone.fouriercoeffs, clone.bias if clone.addbias else None)

    return probe.differs(NAME, make, type(module).forward, ours)
