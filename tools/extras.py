"""Optional packages and programs of the harness and the tools, and errors that say what to install."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterable
from typing import Any


class MissingExtra(ImportError):
    """An optional package of the ``bench`` extra is not installed."""


def require(module: str) -> Any:
    """Import ``module`` (rich, matplotlib, tqdm, sklearn) or raise MissingExtra saying what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise MissingExtra(f"this needs {package!r}: pip install '.[bench]'") from error


def find_program(name: str, first: Iterable[str] = ()) -> str | None:
    """Return a program of the CUDA toolkit: from ``first``, PATH, CUDA_HOME, CUDA_PATH or the usual place."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    toolkit = (os.path.join(home, "bin", name) for home in homes if home)
    candidates = [*(os.path.join(folder, name) for folder in first), shutil.which(name), *toolkit]
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)
