"""FourierKAN's NaiveFourierKANLayer (github.com/GistNoesis/FourierKAN, MIT), recognised by its structure and
its code.

A layer has fouriercoeffs (2, out, in, gridsize), its sizes, perhaps a bias (1, out), and a forward that names
the first.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..._core.bases import MAX_FREQUENCIES
from .._shared import eligible, probe
from .._shared.accelerated import Accelerated, overrides
from .._shared.judge import judge
from .._shared.probe import Probe
from .._shared.subject import Subject
from . import layers

NAME = "FourierKAN"

_SIZES = ("inputdim", "outdim", "gridsize", "addbias")
_CODE = ("fouriercoeffs",)

SUBJECT = Subject(
    NAME,
    "forward",
    tensors=frozenset({*_CODE, "bias"}),
    options=frozenset({"gridsize", "addbias"}),
    extents=frozenset({"inputdim", "outdim"}),
)


class NaiveFourierKANLayer(Accelerated):
    """A mixin with forward on the kernels."""

    _kan_kernels_watched = frozenset({"forward"})

    def forward(self: Any, x: Tensor) -> Tensor:
        if _why_not(self, x) is not None:
            return super().forward(x)  # type: ignore[misc]
        return layers.evaluate(x, self.fouriercoeffs, self.bias if self.addbias else None)

    def _kan_kernels_options(self: Any) -> tuple[Any, ...]:
        return self.inputdim, self.outdim, self.gridsize, bool(self.addbias)

    def _kan_kernels_judge(self) -> tuple[str | None, frozenset[int] | None]:
        return _examine(self)

    def _kan_kernels_fallback(self) -> str | None:
        return self._kan_kernels_why_own() or _why_not_now(self)

    _kan_kernels_note = Accelerated._kan_kernels_for_now


def claims(module: nn.Module) -> bool:
    """Return whether the coefficients and the sizes are there."""
    return not _missing(module)


def lacks(module: nn.Module) -> str | None:
    """Return what a layer with the peer's coefficients lacks of the peer's, or None."""
    missing = _missing(module)
    if "fouriercoeffs" not in module._parameters or not missing:
        return None
    return f"{NAME}: lacks {', '.join(missing)}, which {NAME}'s layers have"


def _missing(module: nn.Module) -> list[str]:
    return [name for name in (*_CODE, *_SIZES) if not probe.has(module, name)]


def reason(module: nn.Module) -> str | None:
    """Return why this layer is left alone, or None."""
    if isinstance(module, layers.NaiveFourierKANLayer):
        return "is the drop-in of kan_kernels and runs the kernels already"
    owner = probe.owner_by_code(module, _CODE)
    if owner is None:
        return "no class of it has a plain forward that names fouriercoeffs"
    return overrides(module, owner, ("forward",)) or _why_other(module) or _examine(module)[0]


def mixin(module: nn.Module) -> type[Accelerated]:
    return NaiveFourierKANLayer


def _why_not(layer: Any, x: object) -> str | None:
    why: str | None = layer._kan_kernels_why_own_for(x)
    if why is not None:
        return why
    coefficients = layer.fouriercoeffs
    why = eligible.why_not_rows(x, coefficients, layer.inputdim) or _why_not_now(layer)
    if why is None and x.dtype != coefficients.dtype:  # type: ignore[attr-defined]
        return f"x is {x.dtype}, the weights are {coefficients.dtype}"  # type: ignore[attr-defined]
    return why


def _why_not_now(layer: Any) -> str | None:
    """Return why the kernels cannot run the layer as it is now, whatever the input, or None."""
    tensors = [layer.fouriercoeffs, *([layer.bias] if layer.addbias else [])]
    shapes = _shapes(layer.inputdim, layer.outdim, layer.gridsize, layer.addbias)
    return probe.wrong_shape(layer, shapes) or eligible.why_not_tensors(layer.fouriercoeffs, tensors)


def _shapes(features: int, out: int, frequencies: int, biased: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"fouriercoeffs": (2, out, features, frequencies)}
    return shapes | {"bias": (1, out)} if biased else shapes


def _why_other(module: Any) -> str | None:
    """Return what does not fit the peer's tensors and sizes."""
    if "parametrizations" in module._modules:
        return "is parametrized; accelerate first, then parametrize"
    size = module.gridsize
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_FREQUENCIES:
        return f"gridsize is {size!r}, the kernels have 1 to {MAX_FREQUENCIES}"
    shapes = _shapes(module.inputdim, module.outdim, size, module.addbias)
    return probe.wrong_shape(module, shapes) or probe.more_than(module, shapes)


_IN, _OUT = 7, 5  # at most, of a probe
_RANGE = 4.0  # of its inputs: more than one period


_FAR = 1e5  # of g x: the peer rounds it, so that its own numbers are noise where |x| is huge


def _examine(module: Any) -> tuple[str | None, frozenset[int] | None]:
    """Return what is against the layer's code, read and run, or None; and the dims of x it is for."""
    verdict = judge(module, SUBJECT)
    if verdict.why is not None:
        return verdict.why, None
    if not verdict.known and isinstance(module, Accelerated):
        module.__dict__["_kan_kernels_judged"] = module._kan_kernels_options()
    fan_in, fan_out = min(_IN, module.inputdim), min(_OUT, module.outdim)

    def make(generator: torch.Generator) -> tuple[Any, Tensor, Tensor]:
        shapes = _shapes(fan_in, fan_out, module.gridsize, module.addbias)
        clone = probe.clone(module, shapes, generator, {})
        clone.inputdim, clone.outdim = fan_in, fan_out
        high = torch.full((fan_in,), _RANGE, dtype=torch.float64, device="cpu")
        return clone, probe.inputs(-high, high, generator), torch.zeros(1, fan_in, dtype=torch.float64)

    def ours(clone: Any, x: Tensor) -> Tensor:
        return layers.evaluate(x, clone.fouriercoeffs, clone.bias if clone.addbias else None)

    compared = Probe(NAME, make, probe.own_class(module).forward, ours, far=_FAR / module.gridsize)
    key = (verdict.token, fan_in, fan_out, module.gridsize, bool(module.addbias))
    return probe.stored(key, lambda: probe.compare(compared, verdict.known))
