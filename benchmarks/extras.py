"""The optional packages of the harness, and an error that names the extra when one is missing."""

from __future__ import annotations

import importlib
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
        raise MissingExtra(f"benchmarks needs {package!r}: pip install '.[bench]'") from error
