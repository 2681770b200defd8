"""Whether methods of pykan's classes, and functions that it makes, are pykan's to the letter."""

from typing import Any

from .._shared.accelerated import Accelerated
from .._shared.judge import why_not_known
from .._shared.source import same_lambda


def why_not_its_code(cls: type, name: str, method: str) -> str | None:
    """Return why a method of a class is not, with all that it calls, that of pykan's class, or None."""
    return why_not_known(cls, f"pykan {name}", method)


def why_not_model(cls: type, model: Any) -> str | None:
    """Return why a model's forward is not pykan's, or its symbolic layers, whose results are used later."""
    whys = [why_not_its_code(cls, "MultKAN", "forward")]
    for layer in {type(layer) for layer in model.symbolic_fun}:
        whys.append(why_not_its_code(layer, "Symbolic_KANLayer", "forward"))
    return next(filter(None, whys), None)


def is_its_own(module: Accelerated, name: str, method: str) -> bool:
    """Return whether an accelerated module has this method of pykan's, and not an edited one."""
    return why_not_its_code(module._kan_kernels_original, name, method) is None


_ZEROS: tuple[Any, ...] = (lambda x: x * 0.0, lambda x: x * 0)
_AVOIDING_ZEROS: tuple[Any, ...] = (lambda x, y_th: ((), x * 0.0), lambda x, y_th: ((), x * 0))


def is_zero(function: Any, avoiding: bool = False) -> bool:
    """Return whether a function is the x*0. that pykan gives symbolic edges, and layers for the base 'zero'.

    It is NaN where x is not finite. avoiding: the same among the functions that avoid singularities.
    """
    return any(same_lambda(function, zero) for zero in (_AVOIDING_ZEROS if avoiding else _ZEROS))
