"""Section 4.2: the natural slope of a knot, found again as a ratio of two symbolic KANs.

    python -m examples.knots_ratio [--fast]

The size of a cusp is a convention, so the signature can depend on u = r/l and v = m/l only, where l is the
longitudinal and r + i m the meridional translation. That, and that the answer is a ratio, is all that is put
in: two [2,1] networks are divided, as for formula F of the paper's table 4, and each of their four edges is
0, x or x^2 with a free affine map inside and outside. All 72 whose numerator varies are trained, from seed 0,
on 1000 of the knots; the simplest (by the library's complexity) within a standard error of the least error
is trained on all. The slope is u / (u^2 + v^2). Terms with less than 5% of the root mean square of the
largest in their polynomial are dropped at last. The knots are not the paper's (see examples/knots.py).
"""

import itertools

import sympy
import torch
from torch import Tensor, nn

from kan_kernels import KANLinear, symbolic
from kan_kernels.training import fit

from .common import main
from .knots_formula import judge
from .knots_table import load

POWERS = ("0", "x", "x^2")
U, V = sympy.symbols("u v")
SMALL, SEEDS, ROWS = 0.05, 1, 1000
PAPER = "82.8%, 0.946, 0.997 (E); 83.1%, 0.946, 1 (A)"
Edges = tuple[str, ...]


class Ratio(nn.Module):
    """f(x) / g(x), two layers [2,1]; edges: the powers of f's and of g's inputs. g starts near 1, no pole."""

    def __init__(self, edges: Edges) -> None:
        super().__init__()
        options = {"grid_size": 1, "spline_order": 0, "base": None, "bias": True}
        self.layers = nn.ModuleList(KANLinear(2, 1, **options) for _ in range(2))
        for n, power in enumerate(edges):
            scale = float(torch.randn(()) if n < 2 else 0.1 * torch.rand(())) if power != "0" else 0.0
            symbolic.fix(self.layers[n // 2], n % 2, 0, power, params=(1.0, 0.0, scale, 0.0))
        nn.init.ones_(self.layers[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x) / self.layers[1](x)


def train(edges: Edges, data: dict, steps: int, rows: int | None = None) -> tuple[Ratio, Tensor]:
    """The best of the seeds, and its squared errors on the validation rows."""
    (x, y), (x_other, y_other) = data["train"], data["validation"]
    found = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model = Ratio(edges)
        fitting = {"train": (x[:rows], y[:rows]), "test": data["validation"]}
        fit(model, fitting, steps=steps, patience=10, progress=False)
        with torch.no_grad():
            found.append((model, (model(x_other) - y_other).square()))
    return min(found, key=lambda pair: pair[1].mean())


def simplest(results: dict[Edges, Tensor]) -> Edges:
    """Of the ratios within one standard error of the least mean error, that of least complexity."""
    best = min(results.values(), key=lambda errors: errors.mean())
    limit = best.mean() + best.std() / len(best) ** 0.5
    near = [edges for edges, errors in results.items() if errors.mean() <= limit]
    return min(near, key=lambda e: (sum(symbolic.get(p).complexity for p in e), results[e].mean()))


def written(model: Ratio, std: Tensor, uv: Tensor) -> list[sympy.Expr]:
    """The ratio in u and v with all its terms, and without the small ones; the denominator is normalised."""
    scaled = {sympy.Symbol(s): t / d for s, t, d in zip("ab", (U, V), std.tolist(), strict=True)}
    both = [sympy.Poly(symbolic.formula(f, ["a", "b"])[0].subs(scaled), U, V) for f in model.layers]
    lead = max(both[1].coeffs(), key=abs)
    size = {
        k: float((uv ** torch.tensor(k)).prod(1).square().mean().sqrt()) for f in both for k in f.monoms()
    }
    ratios, parts = [], []
    for least in (0.0, SMALL):
        for f in both:
            most = least * max(abs(c) * size[k] for k, c in f.terms())
            large = {k: c / lead for k, c in f.terms() if abs(c) * size[k] >= most}
            parts.append(sympy.Poly(large, U, V).as_expr())
        ratios.append(parts[-2] / parts[-1])
    return ratios


def run(fast: bool) -> dict:
    knots = load(crossings=11 if fast else None)
    data, std = knots.scale_free()
    structures = [e for e in itertools.product(POWERS, repeat=4) if e[:2] != ("0", "0")]
    if fast:  # the denominators of u alone above
        structures = [e for e in structures if e[:2] == ("x", "0") and "0" not in e[2:]]
    results = {e: train(e, data, 15, ROWS)[1] for e in structures}
    means = {e: results[e].mean().item() for e in sorted(structures, key=lambda e: results[e].mean())}
    chosen, first = simplest(results), next(iter(means))
    model, _ = train(chosen, data, 30 if fast else 100)
    ratios = written(model, std, data["train"][0] * std)
    truth, slope, uv = data["test"][1][:, 0], knots.slope("test"), (data["test"][0] * std).T.numpy()
    pair = f"{means[chosen]:.3f}; {means[first]:.3f}"
    edges = ("chosen edges: u, v above; u, v below", ", ".join(chosen), "x, 0; x^2, x^2 would be the slope")
    rows = [edges, ("its validation mean square error; the least", pair, "-")]
    judged = {}
    for what, ratio in zip(("trained on all", "without small terms"), ratios, strict=True):
        values = sympy.lambdify((U, V), ratio, "numpy")(*uv)
        judged[what] = {"formula": str(ratio), **judge(torch.from_numpy(values), truth, slope)}
        rows.append((what, f"`{ratio.evalf(3)}`", "u / (u^2 + v^2), the slope"))
        rows.append(("its accuracy, r2 with the signature and with the slope", judged[what]["row"], PAPER))
    return {
        "summary": [{"what": what, "ours": ours, "theirs": theirs} for what, ours, theirs in rows],
        "formulas": judged,
        "search": [{"edges": e, "validation_mse": error} for e, error in means.items()],
    }


if __name__ == "__main__":
    main("knots_ratio", "Section 4.2: the slope found again", run)
