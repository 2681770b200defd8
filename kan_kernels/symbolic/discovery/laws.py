"""Formulas that were found, what they cost and how wrong they are, and the front of the best of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...nn import KAN
from . import present
from .form import Form, Term
from .joint import times

CLOSE = 1.1  # of losses: a simpler formula whose loss is so many times larger is as good
WORSE = 1.1  # of losses: a formula whose loss is more than so many times its network's is worse than it


@dataclass
class Law:
    """A formula, with its errors on rows that no constant was fitted to.

    Attributes:
        form, theta: the functions and the constants.
        names: of the inputs.
        loss: of the formula on the validation rows, a root mean square error unless a loss was given.
        network: the same of the spline network that it was read from; for one that needed no network of the
            best that was read, or None.
        train: the same of the formula on the rows that it was fitted to.
        shape: of the network, such as "[2, 1, 1]".
        seeds: those whose network led to these functions, in the order in which they did; none of a
            regression.
        exact: whether what is left is rounding error.
        squared: whether the losses are root mean square errors.

    Example:
        >>> law = symbolic.discover(torch.rand(40, 1), torch.ones(40), names=["t"]).best
        >>> law.complexity, law.exact
        (1, True)
    """

    form: Form
    theta: Tensor
    names: tuple[str, ...]
    loss: float
    network: float | None
    train: float
    shape: str
    seeds: tuple[int, ...] = field(default=())
    exact: bool = False
    squared: bool = True

    @cached_property
    def expressions(self) -> list[Any]:
        """Return a sympy expression for each output; plain numbers are exact."""
        return present.expressions(self.form, self.theta, self.names)

    @property
    def formula(self) -> Any:
        """Return the sympy expression, or a list of them for several outputs."""
        return self.expressions[0] if len(self.expressions) == 1 else self.expressions

    @cached_property
    def complexity(self) -> int:
        """Return the number of operations, functions, symbols and numbers."""
        return present.complexity(self.expressions)

    @property
    def model(self) -> KAN:
        """Return a KAN in float64 whose edges are the formula's."""
        return present.model_of(self.form, self.theta)

    @property
    def worse_than_network(self) -> bool:
        """Return whether the formula's loss is notably larger than that of its network."""
        factor = WORSE**0.5 if self.squared else WORSE
        return self.network is not None and not self.exact and not self.loss <= times(self.network, factor)

    def skeleton(self) -> str:
        """Return which functions act where, without constants: what two seeds agree about."""
        below = list(self.names)
        for nodes in self.form.layers:
            below = [
                "*".join(
                    sorted(
                        "(" + "+".join(sorted(f"{t.name}:{below[t.source]}" for t in factor)) + ")"
                        for factor in node
                    )
                )
                for node in nodes
            ]
        return "; ".join(below)

    def state(self) -> dict[str, Any]:
        """Return plain data and a tensor, for a checkpoint."""
        kept = ("theta", "names", "loss", "network", "train", "shape", "seeds", "exact", "squared")
        layers = [
            [[[list(term) for term in f] for f in node] for node in nodes] for nodes in self.form.layers
        ]
        return {**{name: getattr(self, name) for name in kept}, "inputs": self.form.inputs, "layers": layers}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Law":
        """Return the law that `state` was taken from."""
        values = dict(state)
        layers = tuple(
            tuple(tuple(tuple(Term(*term) for term in f) for f in node) for node in nodes)
            for nodes in values.pop("layers")
        )
        return cls(form=Form(values.pop("inputs"), layers), **values)


class Pool:
    """All laws found so far, one for each skeleton: the better of two that agree."""

    def __init__(self, floor: float) -> None:
        self.laws: dict[str, Law] = {}
        self.floor = floor

    def add(self, law: Law) -> Law:
        """Take a law in, or its seed where these functions are known; return the one that is kept."""
        key = law.skeleton()
        known = self.laws.get(key)
        if known is None:
            self.laws[key] = law
            return law
        seeds = (*known.seeds, *(seed for seed in law.seeds if seed not in known.seeds))
        better = (law.complexity, law.loss) if self.close(law.loss, known.loss) else (0, law.loss)
        before = (known.complexity, known.loss) if self.close(law.loss, known.loss) else (0, known.loss)
        keep = law if better < before else known
        keep.seeds = seeds
        networks = [n for n in (keep.network, known.network, law.network) if n is not None]
        keep.network = networks[0] if networks else None
        self.laws[key] = keep
        return keep

    def close(self, loss: float, other: float) -> bool:
        """Return whether two losses are as good as the same."""
        low, high = sorted((max(loss, self.floor), max(other, self.floor)))
        return high <= times(low, CLOSE)

    def front(self) -> list[Law]:
        """Return the laws that no simpler one equals, the simplest first."""
        front: list[Law] = []
        for law in sorted(self.laws.values(), key=lambda law: (law.complexity, law.loss)):
            if not front or max(law.loss, self.floor) < max(front[-1].loss, self.floor):
                front.append(law)
        return front

    def best(self) -> Law:
        """Return the simplest law whose loss is within CLOSE of the least; of a squared error, its square."""
        front = self.front()
        squared = front[0].squared
        least = max(min(law.loss for law in front), self.floor)
        limit = least + ((CLOSE**0.5 if squared else CLOSE) - 1) * abs(least)
        return next(law for law in front if law.loss <= limit)


def table(laws: Iterable[Law], best: Law, digits: int = 5) -> Sequence[str]:
    """Return the lines of a table: complexity, losses, seeds, formula."""
    lines = [f"{'':2}{'complexity':>10} {'error':>9} {'network':>9} {'seeds':>5}  formula"]
    for law in laws:
        network = "-" if law.network is None else f"{law.network:.2e}"
        mark = "*" if law is best else "!" if law.worse_than_network else ""
        lines.append(
            f"{mark:2}{law.complexity:>10} {law.loss:>9.2e} {network:>9} {len(law.seeds) or '-':>5}  "
            f"{', '.join(short(e, digits) for e in law.expressions)}"
        )
    return lines


def short(expression: Any, digits: int = 5) -> str:
    """Return an expression as text, its floats with few digits."""
    import sympy

    floats = expression.atoms(sympy.Float)
    return str(expression.xreplace({f: sympy.Float(f, digits) for f in floats}))


def rms(value: float) -> float:
    """Return the root of a mean square, inf for inf."""
    return float(torch.tensor(value, dtype=torch.float64).sqrt())
