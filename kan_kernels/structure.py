"""Structure of a function, by exact derivatives on data: what separates, and what enters through one number.

The tests of KAN 2.0 (arXiv 2408.10205, section 4.2) for any function of PyTorch, a trained KAN for one. Every
score is free of units: 0 where the structure holds, about 1 where it does not at all.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._core import checks

KINDS = ("additive", "multiplicative", "general")
Function = Callable[[Tensor], Tensor]


@torch.inference_mode(False)
@torch.enable_grad()
def separability(function: Function, x: Tensor, *, kind: str = "additive", output: int = 0) -> Tensor:
    """Return how far each pair of inputs is from being separate in a function, (in, in) float64.

    With f_i = df/dx_i, s_i the standard deviation of x_i, and rms over the rows of x:

    - "additive", f = g(x_i, ...) + h(x_j, ...): rms(f_ij) s_i s_j / std(f).
    - "multiplicative", f = g(x_i, ...) h(x_j, ...): rms(f f_ij - f_i f_j) s_i s_j / (rms(f) std(f)).
    - "general", f = F(g(x_i, ...) + h(x_j, ...)): the mixed derivative of log|f_i / f_j|, cleared of
      denominators and in relation to its terms. A power or a log of a product is of this kind too.

    Args:
        function: maps (rows, in) to (rows, out) or (rows,), row by row; three times differentiable for
            "general" and else twice. A KAN has spline_order - 1 continuous derivatives.
        x: (rows, in) finite, at least two rows, where the function is looked at.
        kind: see above.
        output: which one.

    Raises:
        TypeError, ValueError: naming the argument; ValueError for values that are not finite.

    Example:
        >>> x = torch.rand(50, 3, dtype=torch.float64)
        >>> score = separability(lambda x: (x[:, 0] * x[:, 1]).sin() + x[:, 2] ** 2, x)
        >>> bool(score[0, 1] > 0.1), bool(score[0, 2] < 1e-9)
        (True, True)
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {KINDS}")
    f, slopes, bends, third = _derivatives(function, x, output)
    if not all(values.isfinite().all() for values in (f, slopes, bends)):
        raise ValueError("function: has values or derivatives that are not finite on x")
    unit = x.detach().double().std(0, correction=0)
    pair = unit[:, None] * unit
    spread = f.std(correction=0)
    if kind == "additive":
        score = _ratio(_rms(bends) * pair, spread)
    elif kind == "multiplicative":
        mixed = f[:, None, None] * bends - slopes[:, :, None] * slopes[:, None, :]
        score = _ratio(_rms(mixed) * pair, _rms(f) * spread)
    else:
        score = _general(slopes, bends, third, unit, spread)
    score = score.fill_diagonal_(0)
    if not score.isfinite().all():
        raise ValueError("function: has third derivatives that are not finite on x, or scores that overflow")
    return torch.maximum(score, score.t())


def groups(score: Tensor, threshold: float = 1e-2) -> list[tuple[int, ...]]:
    """Return the sets of inputs that separate: those of different sets have scores up to the threshold.

    Args:
        score: (in, in), of `separability`.
        threshold: of the score.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> groups(torch.tensor([[0.0, 0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]))
        [(0, 1), (2,)]
    """
    checks.tensor("score", score, 2)
    threshold = checks.nonnegative("threshold", threshold)
    tied = ((score > threshold) | (score.t() > threshold)).tolist()
    left, found = set(range(len(tied))), []
    while left:
        group, fresh = set(), {min(left)}
        while fresh:
            group |= fresh
            fresh = {j for i in fresh for j in left if tied[i][j]} - group
        left -= group
        found.append(tuple(sorted(group)))
    return found


@torch.inference_mode(False)
@torch.enable_grad()
def symmetry(
    function: Function, x: Tensor, inputs: Sequence[int], *, output: int = 0, seed: int = 0
) -> float:
    """Return how far some inputs are from entering a function through one number, f = F(h(inputs), others).

    Where they do, the gradient with respect to them has a direction that the other inputs do not change: the
    score is the mean squared sine between the directions at other inputs of two rows, weighted by the
    gradients' sizes; inputs count in units of their standard deviations.

    Args:
        function, x, output: as for `separability`; differentiable once.
        inputs: at least two, and not all of them.
        seed: of the pairs of rows.

    Raises:
        TypeError, ValueError: naming the argument; ValueError for values that are not finite.

    Example:
        >>> x = torch.rand(50, 3, dtype=torch.float64)
        >>> symmetry(lambda x: (x[:, 0] * x[:, 1]).sin() + x[:, 2] ** 2, x, [0, 1]) < 1e-9
        True
        >>> symmetry(lambda x: x[:, 0] * x[:, 2] + x[:, 1], x, [0, 1]) < 0.01
        False
    """
    rows = _rows(x)
    count = rows.shape[1]
    chosen = [checks.integer("inputs", i, 0, count - 1) for i in inputs]
    if len(set(chosen)) != len(chosen) or not 2 <= len(chosen) < count:
        raise ValueError(
            f"inputs: got {chosen}, expected at least two different ones, fewer than all {count}"
        )
    generator = torch.Generator().manual_seed(checks.integer("seed", seed, 0))
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    other = torch.empty_like(rows)
    other[order] = rows[order.roll(1)]  # one cycle: no row is its own partner
    other[:, chosen] = rows[:, chosen]
    unit = rows.double().std(0, correction=0)[chosen]
    differ = (rows != other).any(1)
    if not differ.any():
        raise ValueError(f"x: no pair of its rows differs in inputs beside {chosen}, expected rows that do")
    rows, other = rows[differ], other[differ]
    a, b = (
        _slopes(function, place, output)[1].detach().double()[:, chosen] * unit for place in (rows, other)
    )
    size = a.norm(dim=1) * b.norm(dim=1)
    wedge = size.square() - (a * b).sum(1).square()  # |a|^2 |b|^2 sin^2
    score = float(_ratio(_ratio(wedge.clamp(min=0), size).sum(), size.sum()))
    if not math.isfinite(score):
        raise ValueError("function: has derivatives that are not finite on x")
    return score


def _rows(x: object) -> Tensor:
    checks.tensor("x", x, 2)
    assert isinstance(x, Tensor)
    if len(x) < 2 or not x.isfinite().all():
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least two rows of finite numbers")
    return x.detach().clone()


def _slopes(function: Function, rows: Tensor, output: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return f (rows,), its slopes (rows, in), and the points that they hang on."""
    points = rows.requires_grad_()
    value = function(points)
    if not isinstance(value, Tensor) or value.dim() not in (1, 2) or len(value) != len(rows):
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"function: returned {what}, expected a tensor ({len(rows)}, out)")
    if value.dim() == 2:
        value = value[:, checks.integer("output", output, 0, value.shape[1] - 1)]
    elif output != 0:
        raise ValueError(f"output: got {output}, but the function has one, expected 0")
    if not value.requires_grad and (value != value[:1]).any():
        raise ValueError("function: its values are detached from its argument, expected derivatives")
    return value, _gradient(value, points), points


def _gradient(value: Tensor, points: Tensor) -> Tensor:
    """Return the derivatives of the sum of values, zeros where they do not depend on the points."""
    if not value.requires_grad:
        return torch.zeros_like(points)
    (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True, allow_unused=True)
    return torch.zeros_like(points) if slope is None else slope


def _derivatives(
    function: Function, x: Tensor, output: int
) -> tuple[Tensor, Tensor, Tensor, Callable[[], Tensor]]:
    """Return f, its slopes (rows, in) and second ones (rows, in, in), float64, and what makes third."""
    rows = _rows(x)
    f, slopes, points = _slopes(function, rows, output)
    bends = torch.stack([_gradient(slopes[:, i], points) for i in range(rows.shape[1])], 1)

    def third() -> Tensor:
        """Return f_iij, (rows, i, j)."""
        return torch.stack([_gradient(bends[:, i, i], points) for i in range(rows.shape[1])], 1)

    return f.detach().double(), slopes.detach().double(), bends.detach().double(), third


def _general(
    slopes: Tensor, bends: Tensor, third: Callable[[], Tensor], unit: Tensor, spread: Tensor
) -> Tensor:
    """Return the score of f = F(g(x_i) + h(x_j)): f_i / f_j is then a function of x_i times one of x_j."""
    first = slopes * _ratio(unit, spread)
    second = bends * _ratio(unit[:, None] * unit, spread)
    iij = third().detach().double() * _ratio(unit.square()[:, None] * unit, spread)
    i, j = first[:, :, None], first[:, None, :]
    bend_i = second.diagonal(dim1=1, dim2=2)[:, :, None]
    bend_j = bend_i.transpose(1, 2)
    terms = (
        iij * i * j.square(),
        -bend_i * second * j.square(),
        -iij.transpose(1, 2) * j * i.square(),
        bend_j * second * i.square(),
    )
    a, b, c, d = terms
    size = _rms(a.abs() + b.abs() + c.abs() + d.abs())
    return _rms(a + b + c + d) / (size + 1e-6)  # where all terms are rounding errors nothing is mixed


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(0).sqrt()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, and 0 where a or b is 0."""
    return torch.where((a == 0) | (b == 0), 0.0 * a, a / b)
