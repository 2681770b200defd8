"""The names that users import and the arguments that they give are those of the committed table."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
from typing import Any

import pytest

from harness import ROOT
from kan_kernels._core import library
from tools import public_names


def test_public_names() -> None:
    """No name or argument went, came or has another default; tools.public_names writes the table anew."""
    want, got = json.loads(public_names.TABLE.read_text(encoding="utf-8")), public_names.table()
    changed = [
        f"{name}: {want.get(name)} -> {got.get(name)}"
        for name in {**want, **got}
        if want.get(name) != got.get(name)
    ]
    assert not changed, "\n".join(
        ["say in CHANGELOG.md how earlier users move, then write the table anew", *changed]
    )
    assert len(want) > 200


def test_table_sees_what_changes() -> None:
    """A default, the order of arguments, a method and a property are in it; types are not."""

    def function(x: int, *, y: str | None = "a") -> None: ...

    assert public_names.call(function) == "(x, *, y='a')"
    known = public_names.table()
    assert known["kan_kernels.KAN"].startswith("(widths, grid_size=5, spline_order=3, ")
    assert known["kan_kernels.KANLinear.set_edge_mask"] == "(self, mask)"
    assert known["kan_kernels.KANLinear.grid_range"] == "property"


def found(name: str) -> bool:
    """Whether a dotted name leads to something."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError):
            thing: Any = importlib.import_module(".".join(parts[:end]))
            for part in parts[end:]:
                thing = getattr(thing, part, None)
            return thing is not None
    return False


@pytest.mark.skipif(library.LOAD_ERROR is not None, reason="the library is not built")
def test_moved() -> None:
    """What the changelog says to have moved is no longer where it was, and is where it says."""
    moved = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("### Moved")[2]
    rows = re.findall(r"^\| ([a-z_.]+\w+).* \| `(.+)` \|$", moved, re.MULTILINE)
    assert len(rows) > 20
    for was, now in rows:
        assert found(now) and not found(was), (was, now)
