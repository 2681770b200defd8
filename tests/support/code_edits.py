"""Random small edits of a function, as forks make them."""

from __future__ import annotations

import ast
import copy
import inspect
import linecache
import random
import textwrap
import types
from collections.abc import Callable
from typing import Any

WRAPS = (
    *(
        "{}.clamp(-3, 3)",
        "{}.clamp(-10, 10)",
        "{}.clamp(-6.3, 6.3)",
        "{}.nan_to_num()",
        "{}.abs()",
        "{}.relu()",
    ),
    *(
        "{}.detach()",
        "{}.float()",
        "{}.round()",
        "{}.half().to(x.dtype)",
        "0.5 * {}",
        "{} + 1e-3",
        "-{}",
        "{} / 3",
    ),
    *("torch.where({0} > 50, 0 * {0}, {0})", "{0} * ({0} < 100)", "{0}.flatten(1)", "{0}[:1000]", "{} * 1.0"),
    *("{0}.clone()", "torch.tanh({0})", "{0}.sigmoid()", "{0} ** 1", "{0}.mean(0)", "{0} + 0 * {0}"),
    *(
        "{0}.to(torch.float32)",
        "{0}.contiguous()",
        "{0}.squeeze()",
        "{0}.reshape({0}.shape)",
        "{0}.sort(0)[0]",
    ),
)
LINES = (
    *(
        "if x.abs().max() > 50: return 2 * x",
        "if len(x) > 1000: x = x[:1000]",
        "if x.shape[0] == 1: x = 2 * x",
    ),
    *("if x.dtype == torch.float32: x = x + 1", "if x.dim() == 3: x = x.flatten(0, 1)", "x = x.flatten(1)"),
    *("x = x * 1", "if torch.isnan(x).any(): x = torch.zeros_like(x)", "x = x.clamp(-10, 10)", "x += 0.1"),
    *("x = x - x.mean()", "x = x.view(-1, x.shape[-1])", "assert x.dim() == 2", "x = x / len(x)", "x = +x"),
    *("assert x.abs().max() < 100", "x = x.sort(0)[0]", "x = x.float()", "x = torch.nan_to_num(x)"),
)
COMPARED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
COMPUTED = (ast.Add, ast.Sub, ast.Mult, ast.Div)


def edited(function: types.FunctionType, draw: random.Random, name: str) -> tuple[types.FunctionType, str]:
    """A function with one edit, sometimes two, to be put in its place; and the edits in words."""
    bare = _bare(function)
    while True:
        tree = copy.deepcopy(bare)
        node = tree.body[0]
        assert isinstance(node, ast.FunctionDef)
        what = "; ".join(_edit(node, draw) for _ in range(draw.choice((1, 1, 1, 2))))
        if ast.unparse(ast.fix_missing_locations(tree)) == ast.unparse(bare):
            continue
        try:
            return _run(tree, function, name), what
        except (SyntaxError, ValueError):
            continue


def inserted(function: types.FunctionType, line: str, name: str) -> types.FunctionType:
    """A function with a line before its first."""
    tree = _bare(function)
    node = tree.body[0]
    assert isinstance(node, ast.FunctionDef)
    node.body[:0] = ast.parse(line).body
    return _run(tree, function, name)


def _bare(function: types.FunctionType) -> ast.Module:
    """Its source without decorators, annotations and docstring."""
    bare = ast.parse(textwrap.dedent(inspect.getsource(function)))
    node = bare.body[0]
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list, node.returns = [], None
    node.body = node.body[1:] if ast.get_docstring(node) else node.body
    for part in ast.walk(node):
        if isinstance(part, ast.arg):
            part.annotation = None
        elif isinstance(part, ast.AnnAssign):
            part.annotation = ast.Constant(None)
    return bare


def _run(tree: ast.Module, function: types.FunctionType, name: str) -> types.FunctionType:
    """The function of a tree, where the other one lives; its source can be read under a file name."""
    text = ast.unparse(ast.fix_missing_locations(tree))
    code = compile(text, name, "exec", dont_inherit=True)
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    made: dict[str, Any] = {}
    exec(code, function.__globals__, made)
    return made[function.__name__]


def _edit(function: ast.FunctionDef, draw: random.Random) -> str:
    while True:
        what = draw.choice(EDITS)(function, draw)
        if what is not None:
            return f"{function.name}: {what}"


def _blocks(function: ast.FunctionDef) -> list[list[ast.stmt]]:
    blocks = (getattr(node, name, None) for node in ast.walk(function) for name in ("body", "orelse"))
    return [block for block in blocks if isinstance(block, list) and block]


def _choice(function: ast.FunctionDef, draw: random.Random, wanted: Any) -> Any:
    found = [n for n in ast.walk(function) if wanted(n)]
    return draw.choice(found) if found else None


def delete(function: ast.FunctionDef, draw: random.Random) -> str | None:
    block = draw.choice(_blocks(function))
    return None if len(block) < 2 else f"deleted {ast.unparse(block.pop(draw.randrange(len(block))))!r}"


def swap(function: ast.FunctionDef, draw: random.Random) -> str | None:
    block = draw.choice(_blocks(function))
    if len(block) < 2:
        return None
    n = draw.randrange(len(block) - 1)
    block[n], block[n + 1] = block[n + 1], block[n]
    return f"swapped {ast.unparse(block[n])!r}"


def insert(function: ast.FunctionDef, draw: random.Random) -> str | None:
    line = draw.choice(LINES)
    start = 1 if isinstance(function.body[0], ast.Expr) else 0
    function.body.insert(draw.randrange(start, len(function.body)), ast.parse(line).body[0])
    return f"inserted {line!r}"


def wrap(function: ast.FunctionDef, draw: random.Random) -> str | None:
    kinds = (ast.Call, ast.BinOp, ast.Subscript, ast.Name)
    node = _choice(
        function, draw, lambda n: isinstance(n, kinds) and isinstance(getattr(n, "ctx", ast.Load()), ast.Load)
    )
    if node is None:
        return None
    pattern = draw.choice(WRAPS)
    text = pattern.format(f"({ast.unparse(node)})")
    return _replace(function, node, ast.parse(text, mode="eval").body, text)


def operate(function: ast.FunctionDef, draw: random.Random) -> str | None:
    node = _choice(function, draw, lambda n: isinstance(n, (ast.BinOp, ast.Compare)))
    if node is None:
        return None
    if isinstance(node, ast.Compare):
        node.ops[0] = draw.choice(COMPARED)()
    else:
        node.op = draw.choice(COMPUTED)()
    return f"made it {ast.unparse(node)!r}"


def turn(function: ast.FunctionDef, draw: random.Random) -> str | None:
    node = _choice(function, draw, lambda n: isinstance(n, ast.BinOp))
    if node is None:
        return None
    node.left, node.right = node.right, node.left
    return f"turned {ast.unparse(node)!r}"


def count(function: ast.FunctionDef, draw: random.Random) -> str | None:
    node = _choice(
        function, draw, lambda n: isinstance(n, ast.Constant) and isinstance(n.value, (int, float))
    )
    if node is None:
        return None
    before = node.value
    node.value = draw.choice([before + 1, before - 1, 2 * before, before + 1e-2, 0, -before, 5000])
    return f"{before} became {node.value}"


def rename(function: ast.FunctionDef, draw: random.Random) -> str | None:
    names = [n for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    node = draw.choice(names)
    before, node.id = node.id, draw.choice(names).id
    return None if before == node.id else f"{before} became {node.id}"


def attribute(function: ast.FunctionDef, draw: random.Random) -> str | None:
    found = [n for n in ast.walk(function) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    if not found:
        return None
    node = draw.choice(found)
    before, node.attr = (
        node.attr,
        draw.choice([n.attr for n in found] + ["sin", "exp", "training", "data", "T"]),
    )
    return None if before == node.attr else f"{before} became {node.attr}"


def argument(function: ast.FunctionDef, draw: random.Random) -> str | None:
    node = _choice(function, draw, lambda n: isinstance(n, ast.Call) and len(n.args) > 1)
    if node is None:
        return None
    node.args.pop() if draw.random() < 0.5 else node.args.reverse()
    return f"made it {ast.unparse(node)!r}"


def _replace(function: ast.FunctionDef, old: ast.AST, new: ast.AST, text: str) -> str | None:
    for parent in ast.walk(function):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, copy.deepcopy(new))
                return f"made it {text!r}"
            if isinstance(value, list) and any(item is old for item in value):
                value[[item is old for item in value].index(True)] = copy.deepcopy(new)
                return f"made it {text!r}"
    return None


EDITS: tuple[Callable[[ast.FunctionDef, random.Random], str | None], ...] = (
    *(delete, swap, insert, insert, wrap, wrap, wrap, operate, turn, count, rename, attribute, argument),
)
