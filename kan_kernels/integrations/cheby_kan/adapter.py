"""ChebyKAN's ChebyKANLayer (github.com/SynodicMonth/ChebyKAN), recognised by its structure and its code.

A layer has cheby_coeffs (in, out, degree + 1), inputdim, outdim and degree, and a forward that names the
first.

The peer differentiates acos: where tanh saturates, its gradient is NaN, and the kernels' is the limit, 0.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..._core.bases import MAX_FUNCTIONS
from ..._core.tensor_cache import TensorCache, readable
from .._shared import eligible, probe
from .._shared.accelerated import Accelerated, overrides
from .._shared.judge import judge
from .._shared.probe import Probe
from .._shared.subject import Subject
from . import layers

NAME = "ChebyKAN"

_SIZES = ("inputdim", "outdim", "degree")
_CODE = ("cheby_coeffs",)

SUBJECT = Subject(
    NAME,
    "forward",
    tensors=frozenset({*_CODE, "arange"}),
    options=frozenset({"degree"}),
    extents=frozenset({"inputdim", "outdim"}),
)


class ChebyKANLayer(Accelerated):
    """A mixin with forward on the kernels."""

    _kan_kernels_watched = frozenset({"forward"})

    def forward(self: Any, x: Tensor) -> Tensor:
        if _why_not(self, x) is not None:
            return super().forward(x)  # type: ignore[misc]
        return layers.evaluate(x, self.cheby_coeffs)

    def _kan_kernels_options(self: Any) -> tuple[Any, ...]:
        return self.inputdim, self.outdim, self.degree, "arange" in self._buffers

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
    if "cheby_coeffs" not in module._parameters or not missing:
        return None
    return f"{NAME}: lacks {', '.join(missing)}, which {NAME}'s layers have"


def _missing(module: nn.Module) -> list[str]:
    return [name for name in (*_CODE, *_SIZES) if not probe.has(module, name)]


def reason(module: nn.Module) -> str | None:
    """Return why this layer is left alone, or None."""
    if isinstance(module, layers.ChebyKANLayer):
        return "is the drop-in of kan_kernels and runs the kernels already"
    owner = probe.owner_by_code(module, _CODE)
    if owner is None:
        return "no class of it has a plain forward that names cheby_coeffs"
    return overrides(module, owner, ("forward",)) or _why_other(module) or _examine(module)[0]


def mixin(module: nn.Module) -> type[Accelerated]:
    return ChebyKANLayer


def _why_not(layer: Any, x: object) -> str | None:
    why: str | None = layer._kan_kernels_why_own_for(x)
    if why is not None:
        return why
    coefficients = layer.cheby_coeffs
    assert isinstance(x, Tensor)
    if layer._kan_kernels_dims is not None and (x.dim() == 0 or x.shape[-1] != coefficients.shape[0]):
        return f"its own code does something else with x of shape {tuple(x.shape)}"
    # the peer's rows are whatever `view(-1, inputdim)` makes of x: an image becomes one
    if x.numel() % coefficients.shape[0]:
        return f"x has shape {tuple(x.shape)}, expected a multiple of {coefficients.shape[0]} entries"
    return eligible.why_not_like(x, coefficients) or _why_not_now(layer)


def _why_not_now(layer: Any) -> str | None:
    """Return why the kernels cannot run the layer as it is now, whatever the input, or None."""
    coefficients = layer.cheby_coeffs
    expected = (layer.inputdim, layer.outdim, layer.degree + 1)
    if tuple(coefficients.shape) != expected:
        return f"cheby_coeffs is {tuple(coefficients.shape)}, inputdim, outdim, degree + 1 are {expected}"
    return _why_degrees(layer) or eligible.why_not_tensors(coefficients, (coefficients,))


def _why_other(module: Any) -> str | None:
    """Return what does not fit the peer's tensors and sizes."""
    if "parametrizations" in module._modules:
        return "is parametrized; accelerate first, then parametrize"
    degree = module.degree
    if isinstance(degree, bool) or not isinstance(degree, int) or not 0 <= degree < MAX_FUNCTIONS:
        return f"degree is {degree!r}, expected an int from 0 to {MAX_FUNCTIONS - 1}, the kernels' most"
    shape = (module.inputdim, module.outdim, degree + 1)
    why = probe.wrong_shape(module, {"cheby_coeffs": shape}) or _why_degrees(module)
    return why or probe.more_than(module, {"cheby_coeffs", "arange"})


_counts: TensorCache[bool] = TensorCache()  # whether `arange` holds 0, 1, 2, ...


def _why_degrees(module: Any) -> str | None:
    """Return what is against the degrees that its forward multiplies with, where it has them."""
    degrees = module._buffers.get("arange")
    if degrees is None:
        if not probe.has(module, "arange"):
            return None
        degrees = module.arange
    if not isinstance(degrees, Tensor) or degrees.shape != (module.degree + 1,):
        return "arange does not hold the degrees 0, 1, 2, ..."
    if degrees.requires_grad:
        return "arange asks for a gradient, which the kernels do not compute"
    if not readable(degrees):
        return None
    good = _counts.get(degrees)
    # torch does not count writes through `.data`; a GPU, and a mode, can only be asked once
    if good is None or (degrees.is_cpu and torch._C._len_torch_dispatch_stack() == 0):
        good = degrees.tolist() == list(range(len(degrees)))
        _counts.put(degrees, good)
    return None if good else "arange does not hold the degrees 0, 1, 2, ..."


_IN, _OUT = 7, 5  # at most, of a probe
_RANGE = 2.0  # of its inputs: the peer's acos loses digits where tanh comes near 1


def _examine(module: Any) -> tuple[str | None, frozenset[int] | None]:
    """Return what is against the layer's code, read and run, or None; and the dims of x it is for."""
    verdict = judge(module, SUBJECT)
    if verdict.why is not None:
        return verdict.why, None
    if not verdict.known and isinstance(module, Accelerated):
        module.__dict__["_kan_kernels_judged"] = module._kan_kernels_options()
    fan_in, fan_out = min(_IN, module.inputdim), min(_OUT, module.outdim)

    def make(generator: torch.Generator) -> tuple[Any, Tensor, Tensor]:
        shapes = {"cheby_coeffs": (fan_in, fan_out, module.degree + 1)}
        buffers = {} if "arange" not in module._buffers else {"arange": torch.arange(module.degree + 1)}
        clone = probe.clone(module, shapes, generator, buffers)
        clone.inputdim, clone.outdim = fan_in, fan_out
        high = torch.full((fan_in,), _RANGE, dtype=torch.float64, device="cpu")
        return clone, probe.inputs(-high, high, generator), torch.zeros(1, fan_in, dtype=torch.float64)

    compared = Probe(
        NAME,
        make,
        probe.own_class(module).forward,
        lambda clone, x: layers.evaluate(x, clone.cheby_coeffs),
        shapes=((2 * fan_in,), (fan_in, 1), (2, 1, 2 * fan_in)),
    )
    key = (verdict.token, fan_in, fan_out, module.degree, "arange" in module._buffers)
    return probe.stored(key, lambda: probe.compare(compared, verdict.known))
