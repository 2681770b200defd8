"""What programs without Python need of the package: the library of the ops, or the ops in plain operators."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .._core import library
from .._engine import decompositions as plain


def op_library() -> Path:
    """Return the compiled library of the ops, which a C++ program loads before an exported model.

    It needs libtorch and nothing of Python: `dlopen(path, RTLD_NOW | RTLD_GLOBAL)` registers the ops.

    Raises:
        RuntimeError: it was not built, or does not go with this torch.

    Example:
        >>> op_library().name
        'libkan_kernels.so'
    """
    if library.LOAD_ERROR is not None:
        raise RuntimeError(f"the library of the ops is not loaded: {library.LOAD_ERROR}")
    return library.LIBRARY


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Return every op of inference in plain operators, for `ExportedProgram.run_decompositions`.

    `torch.onnx.export` of a model needs none of it; of an exported program it does.

    Example:
        >>> program = torch.export.export(KANLinear(2, 3), (torch.zeros(4, 2),))
        >>> program = program.run_decompositions(torch.export.default_decompositions() | decompositions())
        >>> any("kan_kernels" in str(node.target) for node in program.graph.nodes)
        False
    """
    return plain.table()
