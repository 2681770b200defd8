"""Where code may cut a tensor: at numbers so small that a probe sees what they do."""

import ast
from collections.abc import Callable
from typing import Any, NamedTuple

from .source import LOCAL, MISSING

# A sum of so many sizes of weights, counters up to the order, and of numbers that come to so much, whatever
# their signs. A probe's clone has more features than that (`features_of_clone`), and a probe more rows.
_SIZES, _COUNTERS, _NUMBERS = 1, 2, 4


class Terms(NamedTuple):
    """What a whole number is the sum of."""

    sizes: int = 0
    counters: int = 0
    numbers: int = 0

    def plus(self, other: "Terms") -> "Terms":
        """Return both together, as if none were subtracted."""
        return Terms(*(a + b for a, b in zip(self, other, strict=True)))


def features_of_clone(largest_size: int, order: int) -> int:
    """Return how many features a clone needs, more than any cut that code may make."""
    return _SIZES * largest_size + _COUNTERS * order + _NUMBERS + 1


class Cuts:
    """A list of the variables of a function by which it may cut, and of what they are the sums."""

    def __init__(
        self,
        constant: Callable[[ast.AST], Any],
        is_me: Callable[[ast.AST], bool],
        options: frozenset[str],
        is_extent: Callable[[ast.expr], bool],
    ) -> None:
        self.constant, self.is_me, self.options, self.is_extent = constant, is_me, options, is_extent
        self.variables: dict[str, Terms] = {}

    def assigned(self, name: str, value: ast.expr | None) -> None:
        """Note or forget a variable that gets a value, None for one that is not known."""
        terms = None if value is None else self._terms(value)
        self.variables.pop(name, None)
        if terms is not None:
            self.variables[name] = terms

    def counts(self, target: ast.expr, bounds: list[ast.expr]) -> None:
        """Note a loop's variable, which lies between the bounds."""
        found = [terms for bound in bounds if (terms := self._terms(bound)) is not None]
        if isinstance(target, ast.Name) and len(found) == len(bounds):
            self.variables[target.id] = Terms(*map(max, zip(*found, strict=True)))

    def only(self, before: dict[str, Terms]) -> None:
        """Forget what a branch assigned that may not have run."""
        self.variables = {k: v for k, v in self.variables.items() if before.get(k) == v}

    def why_not(self, node: ast.expr) -> str | None:
        """Return why a probe need not see what is cut there, or None."""
        if isinstance(node, ast.Constant) and not isinstance(node.value, int):
            return None  # None and ...
        terms, most = self._terms(node), (_SIZES, _COUNTERS, _NUMBERS)
        if terms is not None and all(a <= b for a, b in zip(terms, most, strict=True)):
            return None
        return f"cuts at {ast.unparse(node)}, which no probe sees"

    def _terms(self, node: ast.expr) -> Terms | None:
        """Return what it is the sum of, None if it is none."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            return self._terms(node.operand)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
            left, right = self._terms(node.left), self._terms(node.right)
            return None if left is None or right is None else left.plus(right)
        if isinstance(node, ast.Name) and node.id in self.variables:
            return self.variables[node.id]
        if isinstance(node, ast.Attribute) and self.is_me(node.value) and node.attr in self.options:
            return Terms(counters=1)
        plain = isinstance(node, (ast.Attribute, ast.Subscript, ast.Call))  # no multiple of a size
        if plain and self.options and self.is_extent(node):
            return Terms(sizes=1)
        value = node.value if isinstance(node, ast.Constant) else self.constant(node)
        if value is LOCAL or value is MISSING or not isinstance(value, int):
            return None
        return Terms(numbers=abs(value))
