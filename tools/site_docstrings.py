"""A griffe extension for the site: `Example:` of our docstrings is code, which griffe takes for a note."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import griffe

BASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "kan_kernels/_core/bases.py")))


class Examples(griffe.Extension):
    """Reads the section `Example:` as `Examples:`, whose `>>>` are programs."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that was just loaded."""
        if obj.docstring:
            text = BASES.with_formulas(obj.docstring.value)
            text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
            obj.docstring.value = text.replace("](x", "]\\(x")  # phi[i,o](x) is no link
