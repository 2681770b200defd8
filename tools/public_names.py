"""The public names with what a caller may give: tests/core/public_names.json, which a test compares.

    python -m tools.public_names

writes it anew. Where a name goes, or an argument goes, moves or changes its default, CHANGELOG.md says how
earlier users move. Types are left out, since each Python writes them in its own way.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

TABLE = Path(__file__).absolute().parent.parent / "tests" / "core" / "public_names.json"
MODULES = (
    "kan_kernels",
    "kan_kernels.attribution",
    "kan_kernels.data",
    "kan_kernels.deploy",
    "kan_kernels.distributed",
    "kan_kernels.estimators",
    "kan_kernels.functional",
    "kan_kernels.functional.polynomials",
    "kan_kernels.grids",
    "kan_kernels.growth",
    "kan_kernels.head_functions",
    "kan_kernels.inspection",
    "kan_kernels.integrations",
    "kan_kernels.integrations.cheby_kan",
    "kan_kernels.integrations.convert",
    "kan_kernels.integrations.efficient_kan",
    "kan_kernels.integrations.fast_kan",
    "kan_kernels.integrations.fourier_kan",
    "kan_kernels.nn",
    "kan_kernels.plotting",
    "kan_kernels.pruning",
    "kan_kernels.regularization",
    "kan_kernels.structure",
    "kan_kernels.symbolic",
    "kan_kernels.training",
)
"""Those whose names users import."""


def own_names(module: ModuleType) -> list[str]:
    """Return the public names of a module: its `__all__`, or the functions and classes that it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and inspect.unwrap(thing).__module__ == module.__name__
    ]


def call(thing: Any) -> str:
    """Return the arguments of a function or class with their defaults."""
    signature, empty = inspect.signature(thing), inspect.Parameter.empty
    bare = []
    for parameter in signature.parameters.values():
        value = parameter.default
        if callable(value) and value is not empty:
            value = _Named(value)
        bare.append(parameter.replace(annotation=empty, default=value))
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


class _Named:
    """A function or class as a default: its name, which does not change from run to run."""

    def __init__(self, thing: Any) -> None:
        self.name = getattr(thing, "__name__", type(thing).__name__)

    def __repr__(self) -> str:
        return self.name


def members(kind: type, public: set[int]) -> dict[str, str]:
    """Return the methods that a class has of public classes, and its properties."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if parent.__module__.partition(".")[0] != "kan_kernels":
            continue
        for name, thing in vars(parent).items():
            if name.startswith("_"):
                continue
            if isinstance(thing, property):
                found[name] = "property"
            elif id(parent) in public and (inspect.isfunction(thing) or isinstance(thing, classmethod)):
                found[name] = call(getattr(kind, name))
    return found


def table() -> dict[str, str]:
    """Return what each public name is: the arguments of a call, or a word."""
    things = {
        f"{module}.{name}": getattr(importlib.import_module(module), name)
        for module in MODULES
        for name in own_names(importlib.import_module(module))
    }
    found = {name: call(thing) if callable(thing) else type(thing).__name__ for name, thing in things.items()}
    classes: dict[int, str] = {}
    for name, thing in things.items():
        if inspect.isclass(thing):
            classes.setdefault(id(thing), name)  # by the first of its names
    for name in classes.values():
        found |= {f"{name}.{member}": said for member, said in members(things[name], {*classes}).items()}
    return dict(sorted(found.items()))


def main() -> int:
    TABLE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
    print(f"{TABLE.name} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
