"""From a trained classifier to its formula: edges get functions one after the other, then terms are chosen.

A classifier's edges have no shape of their own: any monotone function of both sides of A > B separates the
same states. So an edge gets a formula, the splines that are left adapt to it, and only then is the next edge
looked at. The terms of the formula are entered into a logistic regression, and of all these the simplest is
kept that is as good as the best, to within what the labels can tell.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kan_kernels import KAN, symbolic
from kan_kernels.training import fit

UNRESOLVED = 0.1  # of the fractal dimension, on both sides of 1/2
REGULARITY = (
    100.0  # inverse weight of the regression's L2 term, for states that a formula separates perfectly
)
cross_entropy = nn.functional.binary_cross_entropy_with_logits


class Part(NamedTuple):
    """States of some chains: x (chains states, inputs), y (chains states, 1) is 1 for localised ones."""

    x: Tensor
    y: Tensor
    chains: int

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    def without(self, i: int) -> "Part":
        kept = [j for j in range(self.x.shape[1]) if j != i]
        return self._replace(x=self.x[:, kept])

    @torch.no_grad()
    def errors(self, model: nn.Module) -> Tensor:
        """The share of every chain's states that are on the wrong side."""
        wrong = (model(self.x) > 0) != (self.y > 0.5)
        return wrong.double().view(self.chains, -1).mean(1)

    def accuracy(self, model: nn.Module) -> float:
        return 1 - float(self.errors(model).mean())


def draw(x: Any, dimension: Any, states: int | None, rng: np.random.Generator) -> Part:
    """Some of every chain's states, resolved ones first, or all; x (chains, N, inputs)."""
    if states:
        late = abs(dimension - 0.5) < UNRESOLVED
        order = (rng.random(dimension.shape) + late).argsort(1)[:, :states]
        x = np.take_along_axis(x, order[..., None], 1)
        dimension = np.take_along_axis(dimension, order, 1)
    localised = torch.tensor(dimension < 0.5, dtype=torch.float64)
    return Part(torch.tensor(x).flatten(0, 1), localised.reshape(-1, 1), len(x))


def snap(model: KAN, train: Part, library: list[str], steps: int) -> None:
    """Give every edge the closest function, first layer first, training for `steps` steps after each."""
    for n, layer in enumerate(model.layers):
        for o in range(layer.out_features):
            for i in range(layer.in_features):
                with torch.no_grad():
                    inputs = nn.Sequential(*model.layers[:n])(train.x)
                best = symbolic.suggest(layer, i, o, inputs, 1, library=library, complexity_weight=0.0)[0]
                symbolic.fix(layer, i, o, best.name, params=best.affine)
                fit(model, train.data, steps=steps, loss=cross_entropy)


class Terms(nn.Module):
    """sum_j weight_j term_j + constant, > 0 where states are localised; the terms are sympy expressions."""

    def __init__(self, terms: Sequence[Any], names: Sequence[str]) -> None:
        super().__init__()
        import sympy

        self.terms, self.names = list(terms), list(names)
        self.functions = [sympy.lambdify(sympy.symbols(self.names), term, "numpy") for term in self.terms]
        self.weights, self.constant = torch.zeros(len(self.terms)), 0.0

    def values(self, x: Tensor) -> Tensor:
        """(n, inputs) -> (n, terms)."""
        columns = [column.numpy() for column in x.unbind(1)]
        return torch.stack([torch.as_tensor(function(*columns)) for function in self.functions], 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.values(x) @ self.weights + self.constant).unsqueeze(1)

    def expression(self, digits: int) -> str:
        """The weights rounded, scaled so that the constant is -1."""
        import sympy

        scaled = (self.weights / abs(self.constant)).tolist()
        terms = (sympy.Float(round(w, digits)) * term for w, term in zip(scaled, self.terms, strict=True))
        sign = 1 if self.constant > 0 else -1
        return str(sympy.Add(*terms) + sign)


def choose_terms(expression: Any, names: list[str], train: Part, most: int) -> list[Terms]:
    """Multiply a formula out, and enter its terms into a logistic regression, the most useful one first.

    Returns:
        Formulas of one term, of two, up to `most`.
    """
    import sympy
    from sklearn.linear_model import LogisticRegression

    parts = sympy.Add.make_args(sympy.expand(expression))
    terms = sorted({part.as_coeff_Mul()[1] for part in parts} - {sympy.Integer(1)}, key=str)
    values = Terms(terms, names).values(train.x)
    scale = values.abs().median(0).values
    columns, target = (values / scale).numpy(), train.y[:, 0]

    def regress(kept: list[int]) -> tuple[float, Tensor, float]:
        line = LogisticRegression(C=REGULARITY, solver="newton-cholesky")
        line.fit(columns[:, kept], target.numpy())
        weights, constant = torch.as_tensor(line.coef_[0]) / scale[kept], float(line.intercept_[0])
        return float(cross_entropy(values[:, kept] @ weights + constant, target)), weights, constant

    found: list[Terms] = []
    kept: list[int] = []
    while len(kept) < min(most, len(terms)):
        fits = {j: regress([*kept, j]) for j in range(len(terms)) if j not in kept}
        kept.append(min(fits, key=lambda j: fits[j][0]))
        found.append(Terms([terms[j] for j in kept], names))
        _, found[-1].weights, found[-1].constant = fits[kept[-1]]
    return found


def simplest(formulas: list[Terms], held: Part, tolerance: float) -> Terms:
    """The one with the fewest operations whose error exceeds the smallest by `tolerance` at most."""
    errors = [float(held.errors(formula).mean()) for formula in formulas]
    order = [
        (sum(1 + int(term.count_ops()) for term in formula.terms), error, n)
        for n, (formula, error) in enumerate(zip(formulas, errors, strict=True))
        if error <= min(errors) + tolerance
    ]
    return formulas[min(order)[2]]
