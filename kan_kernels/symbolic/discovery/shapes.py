"""Shapes of networks: those of a search, and those that the structure of a trained one proposes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ... import structure
from ..._core import checks
from .networks import Data, Trained, Widths

# (sums, products) of the hidden layer; the last is a network for all that the others are not
AUTO = ((1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (1, 2), (3, 0), (5, 0))
ROWS = 300  # on which a network's structure is looked at
CLEAR = 0.3  # the relative error up to which a network has a structure
TIED = 0.15  # the score from which two inputs belong together

Groups = Sequence[tuple[int, ...]]


def shapes_of(shapes: object, inputs: int, outputs: int) -> list[Widths]:
    """Return the shapes of a search, the simplest first."""
    if isinstance(shapes, str):
        if shapes != "auto":
            raise ValueError(f'shapes: got {shapes!r}, expected "auto" or a list of widths')
        found: list[Widths] = [(inputs, outputs)]
        found += [_hidden(inputs, sums, products, outputs) for sums, products in AUTO]
        return found
    if not isinstance(shapes, Iterable):
        raise TypeError(f'shapes: got {shapes!r}, expected "auto" or a list of widths')
    found = [_shape(widths, inputs, outputs) for widths in shapes]
    if not found:
        raise ValueError("shapes: got none, expected at least one list of widths")
    return found


def _shape(widths: Any, inputs: int, outputs: int) -> Widths:
    expected = f"widths such as [{inputs}, 2, {outputs}], or with (sums, products) in place of 2"
    if isinstance(widths, str) or not isinstance(widths, Sequence) or len(widths) < 2:
        raise TypeError(f"shapes: got {widths!r}, expected {expected}")
    plain: list[int | tuple[int, int]] = []
    for n, width in enumerate(widths):
        if isinstance(width, Sequence) and not isinstance(width, str):
            if n != 1 or len(widths) != 3 or len(width) != 2:
                raise ValueError(f"shapes: got {widths!r}, expected products in the one hidden layer only")
            products = checks.integer("shapes: products", width[1], 0)
            width = checks.integer("shapes: sums", width[0], 0)
            if width + products == 0:
                raise ValueError(f"shapes: got {widths!r}, expected at least one node")
            plain.append((width, products) if products else width)
        else:
            plain.append(checks.integer("shapes: width", width, 1))
    if (plain[0], plain[-1]) != (inputs, outputs):
        raise ValueError(f"shapes: got {widths!r}, expected {expected}")
    return tuple(plain)


def _hidden(inputs: int, sums: int, products: int, outputs: int) -> Widths:
    return (inputs, (sums, products) if products else sums, outputs)


def groups_of(data: Data, trained: Trained) -> Mapping[str, Groups]:
    """Return which inputs belong together in a network, by each kind of separability, of all outputs.

    Nothing where the network is too far from the data, or nothing separates.
    """
    if not trained.valid / data.variance <= CLEAR**2:
        return {}
    x = data.units(data.train.x[:ROWS])
    function = partial(data.prediction, trained.model)  # in y's own units: products have a zero
    found = {}
    for kind in structure.KINDS:
        try:
            scores = [structure.separability(function, x, kind=kind, output=o) for o in range(data.outputs)]
        except ValueError:  # a derivative is not finite
            continue
        groups = structure.groups(torch.stack(scores).amax(0), TIED)
        if len(groups) > 1:
            found[kind] = groups
    return found


def proposed(groups: Mapping[str, Groups], inputs: int, outputs: int) -> Iterator[Widths]:
    """Yield shapes that have a structure, the plainest first.

    What separates by addition is a node for each group of several inputs, a product where there are two of
    them, and one node for all others; what separates behind a function, sums alone.
    """
    for kind, found in groups.items():
        many = sum(len(group) > 1 for group in found)
        single = int(many < len(found))
        if kind == "additive" and many:
            yield _hidden(inputs, single, many, outputs)
        if kind == "multiplicative" and len(found) == 2:
            yield _hidden(inputs, 0, 1, outputs)
        yield _hidden(inputs, many + single, 0, outputs)
