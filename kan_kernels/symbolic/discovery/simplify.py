"""Simpler formulas: terms that go, or become lines and parabolas, where the whole does not suffer."""

import torch
from torch import Tensor

from ...nn import function_library as library
from .constants import HURTS
from .form import Form, Node, Slot, Term, evaluate
from .joint import Rows, inside, settled


def cleaned(form: Form, theta: Tensor) -> tuple[Form, Tensor]:
    """Return the same formula without terms that are 0, and without nodes that are constant or not read."""
    while True:
        for slot in form.slots():
            if slot.term >= 0 and (form.term(slot).name == "0" or float(theta[slot.at + 2]) == 0):
                form, theta = _without(form, theta, slot)
                break
        else:
            step = _constant_node(form, theta)
            if step is None:
                return form, theta
            form, theta = step


def _rebuilt(form: Form, theta: Tensor, layers: list[list[list[list[tuple[Term, list[float]]]]]],
             biases: dict[tuple[int, int, int], float]) -> tuple[Form, Tensor]:  # fmt: skip
    nodes: list[tuple[Node, ...]] = []
    constants: list[float] = []
    for n, row in enumerate(layers):
        made = []
        for k, node in enumerate(row):
            factors = []
            for j, factor in enumerate(node):
                constants.append(biases[n, k, j])
                for _, abc in factor:
                    constants += abc
                factors.append(tuple(term for term, _ in factor))
            made.append(tuple(factors))
        nodes.append(tuple(made))
    return Form(form.inputs, tuple(nodes)), torch.tensor(constants, dtype=torch.float64)


def _opened(form: Form, theta: Tensor) -> tuple[list, dict[tuple[int, int, int], float]]:
    """Return terms with their constants as nested lists, and the constants of the factors."""
    layers: list = [[[[] for _ in node] for node in nodes] for nodes in form.layers]
    biases = {}
    values = theta.tolist()
    for slot in form.slots():
        if slot.term < 0:
            biases[slot[:3]] = values[slot.at]
        else:
            layers[slot.layer][slot.node][slot.factor].append(
                (form.term(slot), values[slot.at : slot.at + 3])
            )
    return layers, biases


def _without(form: Form, theta: Tensor, slot: Slot) -> tuple[Form, Tensor]:
    layers, biases = _opened(form, theta)
    layers[slot.layer][slot.node][slot.factor].pop(slot.term)
    return _rebuilt(form, theta, layers, biases)


def _constant_node(form: Form, theta: Tensor) -> tuple[Form, Tensor] | None:
    """Return the formula without the first factor or hidden node that is constant or not read, or None."""
    layers, biases = _opened(form, theta)
    for n, nodes in enumerate(layers[:-1]):
        for k, node in enumerate(nodes):
            if len(node) > 1:
                for j, factor in enumerate(node):
                    if not factor:  # a constant: a scale of the next factor
                        scale, other = biases[n, k, j], (j + 1) % len(node)
                        biases[n, k, other] *= scale
                        for _, abc in node[other]:
                            abc[2] *= scale
                        rest = [biases[n, k, i] for i in range(len(node)) if i != j]
                        del node[j]
                        for i in [key for key in biases if key[:2] == (n, k)]:
                            del biases[i]
                        biases.update({(n, k, i): value for i, value in enumerate(rest)})
                        return _rebuilt(form, theta, layers, biases)
            users = form.users(n, k)
            if users and (len(node) > 1 or node[0]):
                continue
            value = torch.tensor([biases[n, k, 0]], dtype=torch.float64)
            for user in reversed(users):
                factor = layers[user.layer][user.node][user.factor]
                term, (a, b, c) = factor.pop(user.term)
                with torch.no_grad():
                    biases[user[:3]] += c * float(library.get(term.name).torch(a * value + b))
            del nodes[k]
            moved = {}
            for (layer, node_, j), bias in biases.items():
                if layer != n or node_ < k:
                    moved[layer, node_, j] = bias
                elif node_ > k:
                    moved[layer, node_ - 1, j] = bias
            if not nodes:  # nothing is read any more of what comes before
                moved = {(at[0] - n - 1, *at[1:]): bias for at, bias in moved.items() if at[0] > n}
                return _rebuilt(form, theta, layers[n + 1 :], moved)
            for above in layers[n + 1]:
                for factor in above:
                    factor[:] = [(Term(t.source - (t.source > k), t.name), abc) for t, abc in factor]
            return _rebuilt(form, theta, layers, moved)
    return None


def simplified(
    form: Form, theta: Tensor, train: Rows, valid: Rows, tick, names: set[str], steps: int = 20
) -> tuple[Form, Tensor]:
    """Return the formula after every replacement by something simpler that does not hurt.

    Args:
        tick: called after each joint fit.
        names: of the functions that are allowed.
    """
    limits = [rows.limit(rows.value(form, theta), HURTS) for rows in (train, valid)]
    theta = _without_shear(form, theta, train, valid, limits, tick, steps)
    quick = train.part(300)
    changed = True
    while changed:
        changed = False
        for slot in sorted((s for s in form.slots() if s.term >= 0), key=lambda s: -s.at):
            for name, constants in _simpler(form, theta, slot, train.x, names):
                trial = theta.clone()
                trial[slot.at : slot.at + 3] = theta.new_tensor(constants)
                other, trial = cleaned(form.with_term(slot, Term(form.term(slot).source, name)), trial)
                trial = inside(other, settled(other, trial), train.x)
                # far off after a few steps on few rows: not worth the others
                trial, value = quick.fit(other, trial, other.free(), 8)
                tick()
                if not value <= train.limit(limits[0], 30.0):
                    continue
                trial, value = train.fit(other, trial, other.free(), steps)
                if value <= limits[0] and valid.value(other, trial) <= limits[1]:
                    form, theta, changed = other, trial, True
                    break
            if changed:
                break
    return form, theta


def _without_shear(
    form: Form, theta: Tensor, train: Rows, valid: Rows, limits: list[float], tick, steps: int
) -> Tensor:
    """Return constants of which no factor of a product has one of its own that does not count.

    In (c + f)(d + g) + p f + q g, terms of f and g alone take over whatever c and d are: the curvature knows
    nothing of them, and no term could go before they are 0.
    """
    free = form.free()
    for slot in form.slots():
        factors = form.layers[slot.layer][slot.node]
        if slot.term >= 0 or len(factors) < 2 or not factors[slot.factor] or float(theta[slot.at]) == 0:
            continue
        trial, rest = theta.clone(), free.clone()
        trial[slot.at], rest[slot.at] = 0.0, False
        trial, value = train.fit(form, trial, rest, steps)
        tick()
        if value <= limits[0] and valid.value(form, trial) <= limits[1]:
            theta, free = trial, rest
    return theta


def _simpler(
    form: Form, theta: Tensor, slot: Slot, x: Tensor, names: set[str]
) -> list[tuple[str, list[float]]]:
    """Return simpler functions for a term with first constants: nothing, a line, a parabola."""
    term = form.term(slot)
    complexity = library.get(term.name).complexity
    below = Form(form.inputs, form.layers[: slot.layer])
    values = x if slot.layer == 0 else evaluate(below, theta[: below.size], x)[0]
    v = values[:, term.source]
    a, b, c = theta[slot.at : slot.at + 3].tolist()
    with torch.no_grad():
        curve = c * library.get(term.name).torch(a * v + b)
    found: list[tuple[str, list[float]]] = [("0", [1.0, 0.0, 0.0])]
    powers = torch.stack((torch.ones_like(v), v, v * v), 1)
    if complexity > library.get("x").complexity and "x" in names:
        line = torch.linalg.lstsq(powers[:, :2], curve[:, None], driver="gelsd").solution[:, 0].tolist()
        found.append(("x", [1.0, 0.0, line[1]]))
    if complexity > library.get("x^2").complexity and "x^2" in names:
        bow = torch.linalg.lstsq(powers, curve[:, None], driver="gelsd").solution[:, 0].tolist()
        if bow[2]:
            found.append(("x^2", [1.0, bow[1] / (2 * bow[2]), bow[2]]))
    return found
