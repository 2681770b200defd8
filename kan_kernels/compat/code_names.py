"""What a class's code reads from its instances, from the names in its byte code."""

import functools
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn

_MODULE = frozenset((*nn.Module().__dict__, *dir(nn.Module)))  # what every module has


def foreign(module: nn.Module, methods: tuple[str, ...], known: frozenset[str]) -> frozenset[str]:
    """Names that these methods of a module read and that are data of this module but not in `known`.

    Data is what is on the instance, and what is on its classes and neither callable nor a descriptor.
    The methods that they call are read too. A name in a method's constants counts: it may go to getattr.

    Args:
        module: its own class, or the one that `accelerate` put a subclass on, is read once.
        methods: a method that is on the instance itself is foreign.
        known: parameters, buffers and children need not be named.
    """
    cls: type = getattr(type(module), "_kan_kernels_original", type(module))
    names, on_class = _read(cls, methods, known)
    if names.isdisjoint(module.__dict__):
        return on_class
    return on_class | names.intersection(module.__dict__)


def why_not(
    module: nn.Module, peer: str, methods: tuple[str, ...], known: frozenset[str], part: str = ""
) -> str | None:
    """Why the code that computes y is not, or not surely, the peer's: by what is on the instance, or None.

    A probe sees the numbers of one moment. A copy whose forward reads an attribute that the peer does not
    have can change them later.
    """
    read = foreign(module, methods, known)
    if not read:
        return None
    replaced = next((name for name in methods if name in read), None)
    if replaced is not None:
        return f"{part + '.' if part else ''}{replaced} was replaced on this instance"
    whose = f"{part}'s" if part else "its"
    return f"{whose} forward reads {', '.join(sorted(read))}, which {peer}'s does not"


@functools.lru_cache(maxsize=256)
def _read(
    cls: type, methods: tuple[str, ...], known: frozenset[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """The names that matter, and those of them that are data on the class."""
    names = frozenset(_names(cls, methods)) - known - _MODULE | set(methods)
    return names, frozenset(name for name in names if _is_data(cls, name))


def _names(cls: type, methods: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(methods)
    while waiting:
        for code in _codes(_attribute(cls, waiting.pop())):
            new = set(_names_of(code)) - found
            found |= new
            waiting.extend(new)
    return found


def _attribute(cls: type, name: str) -> Any:
    """Without nn.Module's own."""
    own = (c for c in cls.__mro__ if c not in nn.Module.__mro__)
    return next((c.__dict__[name] for c in own if name in c.__dict__), None)


def _codes(value: Any) -> Iterator[CodeType]:
    if isinstance(value, property):
        for part in (value.fget, value.fset):
            yield from _codes(part)
    value = getattr(value, "__func__", value)
    while value is not None:
        code = getattr(value, "__code__", None)
        if isinstance(code, CodeType):
            yield code
        value = getattr(value, "__wrapped__", None)


def _names_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _names_of(constant)


def _is_data(cls: type, name: str) -> bool:
    value = _attribute(cls, name)
    return value is not None and not callable(value) and not hasattr(type(value), "__get__")
