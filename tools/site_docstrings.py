"""A griffe extension for the site: `Example:` of our docstrings is code, which griffe takes for a note."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Reads the section `Example:` as `Examples:`, whose `>>>` are programs."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that was just loaded."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = text.replace("](x", "]\\(x")  # phi[i,o](x) is no link
