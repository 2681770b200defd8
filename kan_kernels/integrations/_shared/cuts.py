"""Where code may cut a tensor: at numbers so small, or so near its end, that a probe sees what they do."""

import ast
from collections.abc import Callable
from typing import Any, NamedTuple

from .source import LOCAL, MISSING
from .subject import Subject


class Terms(NamedTuple):
    """A sum that a whole number is, whatever the signs.

    Attributes:
        sizes: how many times the number of knots, or of cells. counters: what counts up to the order.
        numbers: the rest.
    """

    sizes: int = 0
    counters: int = 0
    numbers: int = 0

    def plus(self, other: "Terms") -> "Terms":
        """Return both together, as if none were subtracted."""
        return Terms(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: int) -> "Terms":
        """Return so many times as much."""
        return Terms(*(factor * a for a in self))


# Of what a number may be the sum, to cut by it. Small ones are below all sizes of a probe's clone. What holds
# the number of knots is below its features and outputs, and as far from the end of knots and bases as in the
# layer.
_ALONE, _WITH_A_COUNTER, _WITH_A_SIZE = Terms(0, 0, 4), Terms(0, 1, 2), Terms(1, 4, 4)


def features_of_clone(knots: int, order: int) -> int:
    """Return how many features and outputs a clone needs: more than any cut that code may make."""
    return sum(a * b for a, b in zip(_WITH_A_SIZE, (knots, order, 1), strict=True)) + 1


class Cuts:
    """A list of the variables of a function by which it may cut, and of what they are the sums."""

    def __init__(
        self,
        constant: Callable[[ast.AST], Any],
        is_me: Callable[[ast.AST], bool],
        subject: Subject,
        is_knots: Callable[[ast.expr], bool],
    ) -> None:
        self.constant, self.is_me, self.subject, self.is_knots = constant, is_me, subject, is_knots
        self.variables: dict[str, Terms] = {}

    def assigned(self, name: str, terms: Terms | None) -> None:
        """Note or forget a variable that gets a value, None for one that is not known."""
        self.variables.pop(name, None)
        if terms is not None:
            self.variables[name] = terms

    def counts(self, target: ast.expr, bounds: list[ast.expr]) -> None:
        """Note a loop's variable, which lies between the bounds."""
        found = [terms for bound in bounds if (terms := self.terms(bound)) is not None]
        if isinstance(target, ast.Name) and len(found) == len(bounds):
            self.variables[target.id] = Terms(*map(max, zip(*found, strict=True)))

    def only(self, before: dict[str, Terms]) -> None:
        """Forget what a branch assigned that may not have run."""
        self.variables = {k: v for k, v in self.variables.items() if before.get(k) == v}

    def why_not(self, node: ast.expr) -> str | None:
        """Return why a probe need not see what is cut there, or None."""
        if isinstance(node, ast.Constant) and not isinstance(node.value, int):
            return None  # None and ...
        terms = self.terms(node)
        if terms is not None:
            most = _WITH_A_SIZE if terms.sizes else _WITH_A_COUNTER if terms.counters else _ALONE
            if all(a <= b for a, b in zip(terms, most, strict=True)):
                return None
        return f"cuts at {ast.unparse(node)}, which no probe sees"

    def terms(self, node: ast.expr) -> Terms | None:
        """Return what it is the sum of, None if it is none."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            return self.terms(node.operand)
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        if isinstance(node, ast.Name) and node.id in self.variables:
            return self.variables[node.id]
        if isinstance(node, ast.Attribute) and self.is_me(node.value):
            if node.attr in self.subject.counted:
                return Terms(counters=1)
            return Terms(sizes=1) if node.attr in self.subject.cells else None
        if isinstance(node, ast.Subscript) and self._is_number_of_knots(node):
            return Terms(sizes=1)
        value = node.value if isinstance(node, ast.Constant) else self.constant(node)
        if value is LOCAL or value is MISSING or not isinstance(value, int):
            return None
        return Terms(numbers=abs(value))

    def _arithmetic(self, node: ast.BinOp) -> Terms | None:
        left, right = self.terms(node.left), self.terms(node.right)
        if left is None or right is None:
            return None
        if isinstance(node.op, (ast.Add, ast.Sub)):
            return left.plus(right)
        for number, of in ((left, right), (right, left)):
            if isinstance(node.op, ast.Mult) and number.sizes == number.counters == 0:
                return of.times(number.numbers)
        return None

    def _is_number_of_knots(self, node: ast.Subscript) -> bool:
        """Return whether it is `grid.shape[1]`, of a layer's knots or of what is as large."""
        of, index = node.value, node.slice
        if not self.subject.cells or not isinstance(of, ast.Attribute) or of.attr != "shape":
            return False
        last = index.operand if isinstance(index, ast.UnaryOp) else index  # 1 or -1
        return isinstance(last, ast.Constant) and last.value == 1 and self.is_knots(of.value)
