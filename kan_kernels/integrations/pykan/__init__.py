"""pykan 0.2.8 (PyPI `pykan`, MIT; arXiv 2404.19756 and 2408.10205): MultKAN, also called KAN, and KANLayer.

Both keep their parameters (coef, scale_base, scale_sp, mask, grid, affine, scales and biases of nodes) and
all their methods. The kernels see weights made from them in every forward; the model's statistics are
computed when something reads them.
"""

import importlib.metadata

from torch import nn

from .. import Accelerated, mro_class, overrides
from .layer import AcceleratedLayer, unsupported
from .model import AcceleratedModel

NAME = "pykan"
VERSION = "0.2.8"
_LAYER = ("kan.KANLayer", "KANLayer")
_MODEL = ("kan.MultKAN", "MultKAN")


def claims(module: nn.Module) -> bool:
    """Whether this is pykan's KANLayer or MultKAN, or of a subclass of one."""
    return _owner(module, _LAYER) is not None or _owner(module, _MODEL) is not None


def reason(module: nn.Module) -> str | None:
    """Why the module is left alone, or None."""
    why = _wrong_version()
    if why is not None:
        return why
    owner = _owner(module, _MODEL)
    if owner is not None:
        return overrides(module, owner, ("forward",))
    owner = _owner(module, _LAYER)
    assert owner is not None
    return overrides(module, owner, ("forward",)) or unsupported(module)


def mixin(module: nn.Module) -> type[Accelerated]:
    """The fast methods for the module."""
    return AcceleratedLayer if _owner(module, _MODEL) is None else AcceleratedModel


def _owner(module: nn.Module, name: tuple[str, str]) -> type | None:
    return mro_class(module, lambda cls: (cls.__module__, cls.__qualname__) == name)


def _wrong_version() -> str | None:
    try:
        version = importlib.metadata.version("pykan")
    except importlib.metadata.PackageNotFoundError:
        return f"no pykan is installed that says its version (a copied source?); this adapter knows {VERSION}"
    if version != VERSION:
        return f"pykan {version} is installed; this adapter knows {VERSION} and no other version"
    return None
