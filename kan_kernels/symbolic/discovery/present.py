"""A form as a sympy expression with plain numbers, and as a KAN."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...nn import KAN
from ...nn import function_library as library
from ...nn.symbolic_edges import Edge, SymbolicEdges
from ..expressions import _sympy
from .constants import named
from .form import Form


def expressions(form: Form, theta: Tensor, names: Sequence[str]) -> list[Any]:
    """Return a sympy expression for each output; numbers that are plain to the last digits are exact."""
    sympy = _sympy()
    values = [sympy.Symbol(name) for name in names]
    constants, at = theta.tolist(), 0
    for nodes in form.layers:
        made = []
        for node in nodes:
            product = sympy.Integer(1)
            for factor in node:
                total = number(constants[at], sympy)
                at += 1
                for source, name in factor:
                    a, b, c = (number(value, sympy) for value in constants[at : at + 3])
                    at += 3
                    total += c * library.get(name).sympy(a * values[source] + b)
                product *= total
            made.append(product)
        values = made
    return [_shorter(value, sympy) for value in values]


def _shorter(value: Any, sympy: Any) -> Any:
    """Return the expression, or one expanded, or with powers joined, where that has fewer parts."""
    forms = value, sympy.expand(value, deep=False), sympy.powsimp(value, combine="exp")
    return min(forms, key=lambda form: complexity([form]))


def number(value: float, sympy: Any) -> Any:
    """Return the plain number that a float is, or the float."""
    found = named(value)
    if found is None:
        return sympy.Float(repr(value), 17)
    exact = sympy.Rational(found.fraction.numerator, found.fraction.denominator)
    return exact * sympy.pi if found.pi else exact


def complexity(values: Sequence[Any]) -> int:
    """Return the number of nodes in the expressions' trees: operations, functions, symbols and numbers.

    A sum of n terms has n - 1 additions, as many a product; a fraction and a minus sign count as one number,
    a number that is not plain as two.
    """
    import sympy

    total = 0
    for value in values:
        for node in sympy.preorder_traversal(value):
            if isinstance(node, (sympy.Add, sympy.Mul)):
                total += len(node.args) - 1
            else:
                total += 2 if node.is_Float else 1
    return total


def model_of(form: Form, theta: Tensor) -> KAN:
    """Return a KAN in float64 whose edges are the formula's, with a multiplication node for each product."""
    layers: list[tuple[list[Edge], list[float], tuple[int, list[int]]]] = []
    constants, at = theta.tolist(), 0
    places = list(range(form.inputs))  # of the nodes before, in the KAN: sums come before products
    for nodes in form.layers:
        order = sorted(range(len(nodes)), key=lambda k: len(nodes[k]) > 1)
        starts, count = {}, 0
        for k in order:
            starts[k] = count
            count += len(nodes[k])
        edges: list[Edge] = []
        biases = [0.0] * count
        for k, node in enumerate(nodes):
            for j, factor in enumerate(node):
                biases[starts[k] + j] = constants[at]
                at += 1
                for source, name in factor:
                    a, b, c = constants[at : at + 3]
                    edges.append(Edge(places[source], starts[k] + j, name, (a, b, c, 0.0), 0.0))
                    at += 3
        arities = [len(nodes[k]) for k in order if len(nodes[k]) > 1]
        layers.append((edges, biases, (len(nodes) - len(arities), arities)))
        places = [order.index(k) for k in range(len(nodes))]
    if places != sorted(places):  # outputs in their own order
        lines = [Edge(place, k, "x", (1.0, 0.0, 1.0, 0.0), 0.0) for k, place in enumerate(places)]
        layers.append((lines, [0.0] * len(places), (len(places), [])))
    widths: list[int | tuple[int, int]] = [form.inputs]
    widths += [(sums, len(arity)) if arity else sums for _, _, (sums, arity) in layers]
    model = KAN(widths, mult_arity=[[], *(arity for _, _, (_, arity) in layers)], dtype=torch.float64)
    for layer, (edges, biases, _) in zip(model.layers, layers, strict=True):
        shape = layer.in_features, layer.out_features
        layer.set_edge_mask(torch.zeros(shape))
        layer.bias = nn.Parameter(torch.tensor(biases, dtype=torch.float64))
        if edges:
            layer.set_symbolic(SymbolicEdges(*shape, edges, dtype=torch.float64))
    return model
