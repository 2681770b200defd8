"""The syntax tree of a function that is proven to be the code that runs, and its normal form.

A file may have been edited since it was imported, and a name may stand for anything. So the source is
compiled again and its byte code compared with the function's, and names are looked up where the function
would.
"""

import ast
import builtins
import functools
import hashlib
import linecache
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, starmap
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch

LOCAL = object()
"""What a name of the function itself stands for."""
MISSING = object()
"""What a name stands for that is nowhere."""


class Unreadable(Exception):
    """The error where the source of a function cannot be had, or is not what runs."""


@dataclass(frozen=True)
class Definition:
    """A function with the syntax tree of its code."""

    function: FunctionType
    node: ast.FunctionDef | ast.Lambda
    lines: tuple[str, ...]
    state: tuple[Any, ...]

    def still_runs(self) -> bool:
        """Return whether the function has the code and defaults that were read: reloaders write new ones."""
        state = _state(self.function)
        return len(state) == len(self.state) and all(map(operator.is_, state, self.state))

    def line(self, node: ast.AST) -> str:
        """Return where a node of the tree stands, and its first line: "line 7 of kan.py (x = x.clamp())"."""
        number = getattr(node, "lineno", self.node.lineno)
        name = self.function.__code__.co_filename.replace("\\", "/").rpartition("/")[2]
        text = self.lines[number - 1].strip() if number <= len(self.lines) else ""
        return f"line {number} of {name} ({text})"

    def resolve(self, name: str) -> Any:
        """Return what a name stands for in the function now: LOCAL, MISSING, or the object."""
        code = self.function.__code__
        if name in code.co_varnames or name in code.co_cellvars:
            return LOCAL
        if name in code.co_freevars:
            cell = (self.function.__closure__ or ())[code.co_freevars.index(name)]
            try:
                return cell.cell_contents
            except ValueError:
                return MISSING
        scope = self.function.__globals__
        return scope.get(name, getattr(builtins, name, MISSING))

    def is_default(self, node: ast.expr, value: Any) -> bool:
        """Return whether a default's expression may have made a value: it is no other constant.

        What a name stood for when the function was made is not known.
        """
        if isinstance(node, ast.Name):
            return True
        try:
            expected = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError):
            expected = self.constant(node)
            return expected is LOCAL or expected is MISSING or expected is value
        return type(expected) is type(value) and repr(expected) == repr(value)

    def constant(self, node: ast.AST) -> Any:
        """Return the object that a name or a chain of attributes of modules stands for, LOCAL or MISSING."""
        if isinstance(node, ast.Name):
            return self.resolve(node.id)
        if isinstance(node, ast.Attribute):
            value = self.constant(node.value)
            if isinstance(value, ModuleType) and value.__name__.partition(".")[0] in _TRUSTED:
                return getattr(value, node.attr, MISSING)
        return MISSING


_TRUSTED = frozenset({"torch", "math", "numpy"})  # their functions are what their names say


_DECORATED = torch.no_grad()(lambda: None).__code__  # type: ignore[attr-defined]


def definition(function: Any) -> Definition:
    """Return a plain function's tree.

    Raises:
        Unreadable: saying why, in words that follow "its forward".
    """
    decorated = getattr(function, "__code__", None) is _DECORATED and hasattr(function, "__wrapped__")
    if decorated:
        function = function.__wrapped__  # its decorators stand in its source
    if not isinstance(function, FunctionType):
        raise Unreadable(f"is a {type(function).__name__} and no plain function")
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = tuple(linecache.getlines(code.co_filename, function.__globals__))
    if not lines:
        raise Unreadable("has no source that can be read")
    try:
        tree, codes = _parsed(code.co_filename, lines)
    except (SyntaxError, ValueError) as error:
        raise Unreadable(f"has a source that does not compile: {error}") from None
    nodes = [node for node in _functions(tree) if _first_line(node) == code.co_firstlineno]
    nodes = [node for node in nodes if getattr(node, "name", "<lambda>") == code.co_name]
    if len(nodes) != 1 or not any(_same_code(code, other) for other in codes):
        raise Unreadable(
            "has a source that is not what runs (edited since it was imported, or rewritten by pytest?)"
        )
    if decorated and not getattr(nodes[0], "decorator_list", ()):
        raise Unreadable("has a decorator that its source does not have")
    made = Definition(function, nodes[0], lines, _state(function))
    if not _has_its_defaults(made):
        raise Unreadable("has other defaults than its source")
    return made


def _state(function: FunctionType) -> tuple[Any, ...]:
    positional, named = function.__defaults__ or (), function.__kwdefaults__ or {}
    return function.__code__, len(positional), *positional, *chain.from_iterable(named.items())


def _has_its_defaults(made: Definition) -> bool:
    """Return whether a function has a default for each of its source's, and none is surely another."""
    arguments, function = made.node.args, made.function
    positional, named = function.__defaults__ or (), function.__kwdefaults__ or {}
    nodes = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    given = {argument.arg: node for argument, node in nodes if node is not None}
    if len(positional) != len(arguments.defaults) or named.keys() != given.keys():
        return False
    pairs = [
        *zip(arguments.defaults, positional, strict=True),
        *((given[name], named[name]) for name in given),
    ]
    return all(starmap(made.is_default, pairs))


@functools.lru_cache(maxsize=64)
def _parsed(filename: str, lines: tuple[str, ...]) -> tuple[ast.Module, tuple[CodeType, ...]]:
    text = "".join(lines)
    compiled = compile(text, filename, "exec", dont_inherit=True)
    tree = ast.parse(text)
    codes = list(_nested(compiled))
    for node in tree.body:  # as IPython compiles a cell, which makes other byte code of imported names
        alone = compile(ast.Module([node], []), filename, "exec", dont_inherit=True)
        codes += _nested(alone)
    return tree, tuple(codes)


def _nested(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.Lambda]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda)))


def _first_line(node: ast.FunctionDef | ast.Lambda) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


_CODE = (
    *("co_name", "co_firstlineno", "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars"),
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags"),
)


def _same_code(a: CodeType, b: CodeType) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in _CODE) and same_constants(a, b)


def same_constants(a: CodeType, b: CodeType) -> bool:
    """Return whether two codes have the same constants, 0.0 told from 0 and from -0.0."""
    if len(a.co_consts) != len(b.co_consts):
        return False
    for one, other in zip(a.co_consts, b.co_consts, strict=True):
        if isinstance(one, CodeType) and isinstance(other, CodeType):
            if not _same_code(one, other):
                return False
        elif type(one) is not type(other) or repr(one) != repr(other):
            return False
    return True


def same_lambda(function: Any, pattern: FunctionType) -> bool:
    """Return whether a function is the very expression of a pattern that names nothing: lambda x: x * 0.0."""
    code, wanted = getattr(function, "__code__", None), pattern.__code__
    if not isinstance(code, CodeType) or getattr(function, "__defaults__", None):
        return False
    names = ("co_code", "co_names", "co_freevars", "co_cellvars", "co_argcount", "co_kwonlyargcount")
    return all(getattr(code, n) == getattr(wanted, n) for n in names) and same_constants(code, wanted)


def canonical(value: Any, fallback: str) -> str:
    """Return the name of a function of torch, math or Python, however it was imported; else the fallback."""
    return _known_names().get(id(value), fallback)


@functools.cache
def _known_names() -> dict[int, str]:
    names: dict[int, str] = {}
    for module in (torch.nn.functional, torch.linalg, torch, math, builtins):
        for name in dir(module):
            value = getattr(module, name, None)
            if callable(value) and not isinstance(value, ModuleType) and not name.startswith("__"):
                names.setdefault(id(value), f"{module.__name__}.{name}")
    return names


def statements(made: Definition) -> list[tuple[ast.AST, str]]:
    """Return the statements of a function in their normal form, each with its node, the arguments first.

    Names of variables, annotations, docstrings and comments do not count, nor how a function of torch was
    imported.
    """
    node = made.node
    if isinstance(node, ast.Lambda):
        return [(node, _Form(made).text(node.body))]
    form = _Form(made)
    return [(node, form.header(node)), *form.body(node.body, 0)]


def fingerprint(made: Definition) -> tuple[str, ...]:
    """Return a hash of every statement of a function's normal form."""
    return tuple(hashlib.sha256(text.encode()).hexdigest()[:8] for _, text in statements(made))


class _Form:
    """A writer of syntax as text, alike in every version of Python."""

    def __init__(self, made: Definition) -> None:
        self.made = made
        self.names: dict[str, str] = {}

    def header(self, node: ast.FunctionDef) -> str:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
        named = [f"{a.arg}={self.name(a.arg)}" for a in every]
        defaults = [self.text(d) for d in (*arguments.defaults, *arguments.kw_defaults)]
        return f"def {named} {defaults} {[self.text(d) for d in node.decorator_list]}"

    def body(self, nodes: list[ast.stmt], depth: int) -> Iterator[tuple[ast.AST, str]]:
        for node in nodes:
            if is_text(node):
                continue
            inner = [
                name for name in ("body", "orelse", "handlers", "finalbody") if getattr(node, name, None)
            ]
            if not inner or not isinstance(node, ast.stmt):
                text = self.text(node)
                if text:
                    yield node, f"{depth} {text}"
                continue
            yield node, f"{depth} {self.text(node, without=inner)}"
            for name in inner:
                yield node, f"{depth} {name}"
                yield from self.body(getattr(node, name), depth + 1)

    def name(self, name: str) -> str:
        return self.names.setdefault(name, f"v{len(self.names)}")

    def text(self, node: Any, without: list[str] | tuple[str, ...] = ()) -> str:
        if isinstance(node, list):
            return "[" + ",".join(self.text(item) for item in node) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, ast.AnnAssign):
            if node.value is None:
                return ""
            return f"Assign({self.text([node.target])},{self.text(node.value)})"
        if isinstance(node, (ast.Name, ast.Attribute)):
            value = self.made.constant(node)
            if value is LOCAL and isinstance(node, ast.Name):
                return self.name(node.id)
            if isinstance(value, (int, float, complex, str, type(None))):
                return repr(value)
            if value is not LOCAL and value is not MISSING:
                return canonical(value, f"{type(value).__name__} {_dotted(node)}")
        fields = []
        for name in node._fields:
            value = getattr(node, name, None)
            skipped = name in ("ctx", "kind", "type_comment", "type_params", "annotation", "returns")
            if not skipped and name not in without and value is not None and value != []:
                fields.append(self.text(value))
        return f"{type(node).__name__}({','.join(fields)})"


def is_text(node: ast.AST) -> bool:
    """Return whether a statement is a docstring or a text put there as a comment."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _dotted(node: ast.AST) -> str:
    """Return the last name of a chain: what a module was imported as does not count."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
