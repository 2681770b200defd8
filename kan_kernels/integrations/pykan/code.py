"""Whether methods of pykan's classes, and functions that it makes, are pykan's to the letter."""

import importlib
from typing import Any

import torch

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


def why_not_its_functions(symbolic: Any) -> str | None:
    """Return which edge of a symbolic layer has another function than pykan's of its name, or None.

    A name that pykan does not know is somebody's own.
    """
    known = importlib.import_module("kan.utils").SYMBOLIC_LIB
    for o, i in symbolic.mask.nonzero().tolist():
        name, function = symbolic.funs_name[o][i], symbolic.funs[o][i]
        if name in known and function is not known[name][0] and not _alike(function, known[name][0]):
            return f"the function of the edge {i} -> {o} is not pykan's {name!r}, as it is named"
    return None


def _alike(function: Any, other: Any) -> bool:
    """Return whether two functions have the same values: another import of pykan has the same code anew."""
    x = torch.tensor([-3.7, -1.1, -0.2, 0.0, 0.3, 0.9, 2.6, 11.0], dtype=torch.float64, device="cpu")
    try:
        return torch.equal(*(torch.nan_to_num(f(x.clone()), 1e300) for f in (function, other)))
    except Exception:  # whatever function it is
        return False
