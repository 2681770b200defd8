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
from .form import Form, Node


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
    """Return the expression, or its expanded form where that has fewer parts."""
    return min((value, sympy.expand(value, deep=False)), key=lambda form: complexity([form]))


def number(value: float, sympy: Any) -> Any:
    """Return the plain number that a float is, or the float."""
    found = named(value)
    if found is None:
        return sympy.Float(repr(value), 17)
    exact = sympy.Rational(found.fraction.numerator, found.fraction.denominator)
    return exact * sympy.pi if found.pi else exact


def complexity(values: Sequence[Any]) -> int:
    """Return the number of nodes in the expressions' trees: operations, functions, symbols and numbers.

    A sum of n terms has n - 1 additions, as many a product; a fraction and a minus sign count as one number.
    """
    import sympy

    total = 0
    for value in values:
        for node in sympy.preorder_traversal(value):
            if isinstance(node, (sympy.Add, sympy.Mul)):
                total += len(node.args) - 1
            else:
                total += 1
    return total


def model_of(form: Form, theta: Tensor) -> KAN:
    """Return a KAN in float64 whose edges are the formula's.

    A layer with a product is three there: the factors; their sums and differences; squares of these, since
    u v = (u + v)^2 / 4 - (u - v)^2 / 4.
    """
    layers: list[tuple[int, list[Edge], list[float]]] = []
    constants, at = theta.tolist(), 0
    for nodes in form.layers:
        edges: list[Edge] = []
        biases: list[float] = []
        for node in nodes:
            for factor in node:
                biases.append(constants[at])
                at += 1
                for source, name in factor:
                    a, b, c = constants[at : at + 3]
                    edges.append(Edge(source, len(biases) - 1, name, (a, b, c, 0.0), 0.0))
                    at += 3
        layers.append((len(biases), edges, biases))
        if any(len(node) > 1 for node in nodes):
            layers += _products(nodes)
    model = KAN([form.inputs, *(width for width, _, _ in layers)], dtype=torch.float64)
    for layer, (_, edges, biases) in zip(model.layers, layers, strict=True):
        shape = layer.in_features, layer.out_features
        layer.set_edge_mask(torch.zeros(shape))
        layer.bias = nn.Parameter(torch.tensor(biases, dtype=torch.float64))
        if edges:
            layer.set_symbolic(SymbolicEdges(*shape, edges, dtype=torch.float64))
    return model


def _products(nodes: tuple[Node, ...]) -> list[tuple[int, list[Edge], list[float]]]:
    """Return the two layers that make products of the factors of nodes."""
    sums: list[Edge] = []
    squares: list[Edge] = []
    source = between = 0
    for k, node in enumerate(nodes):
        if len(node) == 1:
            sums.append(_line(source, between, 1.0))
            squares.append(_line(between, k, 1.0))
        elif len(node) == 2:
            for place, sign in enumerate((1.0, -1.0)):
                sums += [_line(source, between + place, 1.0), _line(source + 1, between + place, sign)]
                squares.append(Edge(between + place, k, "x^2", (1.0, 0.0, 0.25 * sign, 0.0), 0.0))
        else:
            raise ValueError("a product of more than two factors")
        source, between = source + len(node), between + len(node)
    return [(between, sums, [0.0] * between), (len(nodes), squares, [0.0] * len(nodes))]


def _line(source: int, target: int, slope: float) -> Edge:
    return Edge(source, target, "x", (1.0, 0.0, slope, 0.0), 0.0)
