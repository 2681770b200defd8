"""pykan 0.2.8 (PyPI `pykan`, MIT; arXiv 2404.19756 and 2408.10205): MultKAN, also called KAN, and KANLayer.

Both keep their parameters (coef, scale_base, scale_sp, mask, grid, affine, scales and biases of nodes) and
all their methods. The kernels see weights made from them in every forward; the model's statistics are
computed when something reads them. They are recognised by their code, whatever version it says it is.
"""

from torch import nn

from .._shared.accelerated import Accelerated, mro_class, overrides
from .code import why_not_its_code, why_not_model
from .layer import AcceleratedLayer, unsupported
from .model import AcceleratedModel

NAME = "pykan"
_LAYER = ("kan.KANLayer", "KANLayer")
_MODEL = ("kan.MultKAN", "MultKAN")


def claims(module: nn.Module) -> bool:
    """Return whether this is pykan's KANLayer or MultKAN, or of a subclass of one."""
    return _owner(module, _LAYER) is not None or _owner(module, _MODEL) is not None


def lacks(module: nn.Module) -> str | None:
    """Return None: what is not of pykan's classes is nobody's copy that could be completed."""
    return None


def reason(module: nn.Module) -> str | None:
    """Return why the module is left alone, or None."""
    owner = _owner(module, _MODEL)
    if owner is not None:
        return overrides(module, owner, ("forward",)) or why_not_model(type(module), module)
    owner = _owner(module, _LAYER)
    assert owner is not None
    why = overrides(module, owner, ("forward",)) or why_not_its_code(type(module), "KANLayer", "forward")
    return why or unsupported(module)


def mixin(module: nn.Module) -> type[Accelerated]:
    """Return the fast methods for the module."""
    return AcceleratedLayer if _owner(module, _MODEL) is None else AcceleratedModel


def _owner(module: nn.Module, name: tuple[str, str]) -> type | None:
    return mro_class(module, lambda cls: (cls.__module__, cls.__qualname__) == name)
