"""Section 4.3: mobility edges of three quasiperiodic chains, as formulas that KANs find in their eigenstates.

    python -m examples.anderson [--fast]

States with a fractal dimension below 1/2 are called localised. Those between 0.4 and 0.6 are not resolved
at this size: they take no part in training and choosing, and half their share, the error of labels drawn by
lot, is how much worse a smaller network or a plainer formula may be. Accuracies: all states of other chains.

Given to all three alike, as the paper's user chose it for GAAM: a hidden layer of two nodes and the functions
x and x^2, which can form products; then exp and cosh of a parameter in place of it. Found: which inputs
matter, the terms, their weights. The procedure, its tolerance included, was developed on seed 0; on seeds 1
and 2 (other chains, other initial networks) it was run once, as it is.
"""

from itertools import chain
from typing import Any

import numpy as np
import torch

from kan_kernels import KAN, symbolic
from kan_kernels.pruning import input_scores
from kan_kernels.training import fit

from .anderson_models import MODELS, Model, eigenstates
from .anderson_picture import phase_diagrams
from .anderson_search import UNRESOLVED, Part, Terms, choose_terms, cross_entropy, draw, simplest, snap
from .common import main, save_figure

THEIRS = {
    "MM": ("lambda - h(E), h a spline", "-", "-"),
    "GAAM": (
        "1.52 E^2 + 21.06 alpha E + 0.66 E + 3.55 alpha^2 + 0.91 alpha + 45.13 lambda - 54.45",
        "98.7%, 99.0%",
        "99.2%",
    ),
    "MAAM": ("sines, arctangents and an exponential, nested", "98.4%, 97.1%", "98.6%"),
}


def learn(train: Part, steps: int, seed: int) -> KAN:
    torch.manual_seed(seed)
    model = KAN([train.x.shape[1], 2, 1], grid_size=3)
    fit(model, train.data, steps=steps, loss=cross_entropy, lamb=1e-3, update_grid_at=range(0, steps // 2, 3))
    return model


def discover(model: Model, seed: int, m: int, chains: list[int], steps: int, most: int) -> tuple[dict, Terms]:
    import sympy

    x, dimension = eigenstates(model, sum(chains), m, seed)
    rng = np.random.default_rng(seed + 1)
    spans = np.split(np.arange(len(x)), np.cumsum(chains)[:-1])
    train, held, test = (
        draw(x[s], dimension[s], n, rng) for s, n in zip(spans, (20, 100, None), strict=True)
    )
    tolerance = float((abs(dimension[: -chains[2]] - 0.5) < UNRESOLVED).mean()) / 2
    inputs = dict(zip(model.inputs, test.x.numpy().T, strict=True))
    known = float(((model.g(inputs) > 0) == (test.y[:, 0].numpy() > 0.5)).mean())

    names, net = model.inputs, learn(train, steps, seed)
    while len(names) > 1:
        least = int(input_scores(net, train.x).argmin())
        fewer = learn(train.without(least), steps, seed)
        if held.without(least).accuracy(fewer) < held.accuracy(net) - tolerance:
            break
        net, names = fewer, [name for name in names if name != names[least]]
        train, held, test = (p.without(least) for p in (train, held, test))
    splines = test.accuracy(net)

    snap(net, train, ["x", "x^2"], steps // 4)
    snapped, formula = test.accuracy(net), symbolic.formula(net, names)[0]
    formulas = choose_terms(formula, names, train, most=most)
    for name in names[1:]:
        for function in (sympy.exp, sympy.cosh):
            curved = sympy.expand(formula).subs(name, function(sympy.Symbol(name)))
            formulas += choose_terms(curved, names, train, most=most)
    found = simplest(formulas, held, tolerance)
    return {
        "model": model.name,
        "seed": seed,
        "sites": x.shape[1],
        "chains": chains,
        "unresolved": round(2 * tolerance, 4),
        "inputs": names,
        "network": str(symbolic.formula(net, names, digits=2)[0]),
        "found": found.expression(3),
        "known": model.edge,
        "accuracy": {"splines": splines, "network": snapped, "found": test.accuracy(found), "known": known},
    }, found


def rows(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    first, *others = results
    formula, ours, theory = THEIRS[first["model"]]
    accuracy = [{k: f"{100 * v:.2f}%" for k, v in result["accuracy"].items()} for result in results]
    texts = [
        (f"edge (known: {first['known']})", first["found"], formula),
        ("accuracy: splines, formula", f"{accuracy[0]['splines']}, {accuracy[0]['found']}", ours),
        ("accuracy of the known edge", accuracy[0]["known"], theory),
    ]
    for other, a in zip(others, accuracy[1:], strict=True):
        texts.append((f"edge, seed {other['seed']}", f"{other['found']} ({a['found']})", "-"))
    return [{"what": f"{first['model']}, {what}", "ours": o, "theirs": t} for what, o, t in texts]


def run(fast: bool) -> dict[str, Any]:
    size, chains, *effort = (12, [100, 40, 40], 12, 2) if fast else (14, [200, 60, 60], 30, 3)
    seeds = range(1 if fast else 3)
    found = [[discover(m, seed, size - (m.name == "MM"), chains, *effort) for seed in seeds] for m in MODELS]
    if not fast:
        save_figure(phase_diagrams([terms for (_, terms), *_ in found], size), "anderson", dpi=100)
    results = [[result for result, _ in runs] for runs in found]
    return {"summary": [row for runs in results for row in rows(runs)], "models": [*chain(*results)]}


if __name__ == "__main__":
    main("anderson", "Section 4.3: mobility edges of quasiperiodic chains", run)
