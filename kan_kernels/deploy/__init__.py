"""A trained KAN without torch or without Python: NumPy, C, and what exported programs need."""

import importlib
import importlib.util
from typing import Any

from .._core.files import write
from .numpy_model import NumpyKAN, to_numpy_model

__all__ = ["NumpyKAN", "to_numpy_model", "write"]

# imported on use: `import kan_kernels` passes here before it knows which torch there is, and if there is one
_WITH_TORCH = {"decompositions": "programs", "op_library": "programs", "to_c": "c_header"}
if importlib.util.find_spec("torch") is not None:
    __all__ += list(_WITH_TORCH)


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WITH_TORCH[name]}", __name__), name)
