"""The affine fit c f(a x + b) + d of many curves with many functions at once, in float64.

Variable projection (Golub & Pereyra 1973): c and d are eliminated by linear regression, and a damped Newton
method runs on the two nonlinear parameters, for every curve, function and start at the same time. Most fits
are bad ones, on which Gauss-Newton would crawl; on a curve of the family it converges to rounding error.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._core import threads
from ..nn.function_library import Function
from . import search

STARTS = 4  # local optima of the grid that are refined
COARSE, FINE = 96, 2048  # samples in the first and in the second refinement
STEPS = 12, 60  # iterations of each, at most
_CHUNK = 1 << 19  # numbers in one temporary: it should stay in the cache


class Fits(NamedTuple):
    """The best fit of each curve with each function.

    r2: (E, F), the share of the curve's variance that is explained, at most 1; 1 for a constant curve.
    affine: (E, F, 4), a, b, c, d. functions: the F functions.
    """

    r2: Tensor
    affine: Tensor
    functions: list[Function]


def samples(x: Tensor, count: int) -> Tensor:
    """Map (n, in) to (min(n, count), in) in float64: all values, or even quantiles with both extremes."""
    x = x.double()
    if x.shape[0] <= count:
        return x
    ranks = torch.linspace(0, x.shape[0] - 1, count, dtype=torch.float64, device=x.device).round().long()
    return x.sort(0).values[ranks]


@torch.no_grad()
def fit(
    x: Tensor,
    curves: Callable[[slice, Tensor], Tensor],
    functions: list[Function],
    eps: float = 2.0**-52,
) -> Fits:
    """Fit every curve with every function.

    Args:
        x: (n, E) finite float64, the data of each curve.
        curves: (columns, points) -> values, both (m, len(columns)): the curves `columns` at points.
        functions: the F candidates.
        eps: of the dtype that will evaluate the fits. They stay a few eps inside of the domain, so that
            rounding does not turn a data point into NaN.

    A short arc of nearly any function is as good a line or parabola as one likes, times a large c that d
    cancels. So a fit whose |c f| is more than `search.CANCEL` times the largest value of the curve is made
    once more within that limit, and kept only where it leaves less of the curve, by the square of its excess.
    """
    with threads.few(x.numel()):
        return _fit(x, curves, functions, eps)


def _fit(x: Tensor, curves: Callable[[slice, Tensor], Tensor], functions: list[Function], eps: float) -> Fits:
    low, high = x.amin(0), x.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    nodes = torch.linspace(0, 1, search.NODES, dtype=torch.float64, device=x.device)[:, None]
    weight, values = _histogram((x - low) / width), curves(slice(None), low + nodes * width)
    edges, count = x.shape[1], len(functions)
    within = search.CANCEL * values.abs().amax(0)
    limits = torch.stack((torch.full_like(within, torch.inf), within))  # first without, then within
    twice = weight.repeat(1, 2), values.repeat(1, 2), limits.flatten()
    starts = torch.stack([search.starts(f, *twice, STARTS, eps).unflatten(0, (2, -1)) for f in functions])

    step = max(1, _CHUNK // (max(x.shape[0], COARSE * STARTS) * count))
    fits = []
    for start in range(0, edges, step):
        part = slice(start, min(start + step, edges))
        unit, fine = (low[part], width[part]), x[:, part]
        coarse = samples(fine, COARSE)
        many = _Problems.every(functions, eps, coarse, curves(part, coarse), *unit, STARTS)
        few = _Problems.every(functions, eps, fine, curves(part, fine), *unit)
        found = _best(many, few, starts[:, 0, part].flatten(0, 1))
        limit = within[part].repeat(count)
        excess = found.term / limit
        again = excess > 1
        if again.any():
            bounded = [
                p.select(again.repeat_interleave(n)).within(limit[again].repeat_interleave(n))
                for p, n in ((many, STARTS), (few, 1))
            ]
            other = _best(bounded[0], bounded[1], starts[:, 1, part].flatten(0, 1)[again])
            plainer = other.error <= found.error[again] * excess[again].square()
            for value, new in zip(found, other, strict=True):
                value[again.nonzero()[plainer, 0]] = new[plainer]
        fits.append([v.unflatten(0, (count, -1)).transpose(0, 1) for v in found[:2]])
    r2, affine = (torch.cat(part) for part in zip(*fits, strict=True))
    return Fits(r2, affine, functions)


class _Found(NamedTuple):
    """The results of P fits: r2 (P,), affine (P, 4), the mean square error (P,), the largest |c f| (P,)."""

    r2: Tensor
    affine: Tensor
    error: Tensor
    term: Tensor


def _best(coarse: "_Problems", fine: "_Problems", starts: Tensor) -> _Found:
    """Return the best of the starts (P, STARTS, 2), refined on few samples and then on all."""
    ends, error = coarse.refine(starts.flatten(0, 1), STEPS[0])
    best = error.view(-1, STARTS).argmin(-1)[:, None, None].expand(-1, 1, 2)
    ends, _ = fine.refine(ends.view(-1, STARTS, 2).gather(1, best)[:, 0], STEPS[1])
    return fine.result(ends)


def _histogram(t: Tensor) -> Tensor:
    """Map (n, E) in [0, 1] to (NODES, E): each sample's weight shared by its two neighbouring nodes."""
    place = t * (search.NODES - 1)
    left = place.floor().clamp(0, search.NODES - 2)
    right = place - left
    weight = t.new_zeros(search.NODES, t.shape[1])
    weight.scatter_add_(0, left.long(), 1 - right)
    weight.scatter_add_(0, left.long() + 1, right)
    return weight / t.shape[0]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _derivatives(function: Function, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, f', f'' at z."""
    with torch.enable_grad():
        z = z.requires_grad_()
        f = function.torch(z)
        (slope,) = torch.autograd.grad(f.sum(), z, create_graph=True)
        bend = None
        if slope.requires_grad:
            (bend,) = torch.autograd.grad(slope.sum(), z, allow_unused=True)
    return f.detach(), slope.detach(), torch.zeros_like(z) if bend is None else bend


def _solve(gradient: Tensor, gauss_newton: Tensor, hessian: Tensor, damping: Tensor) -> Tensor:
    """Return the damped step (P, 2): Newton's where its matrix is positive definite, else Gauss-Newton's."""
    damp = damping * gauss_newton[:, :2] + 1e-300
    move = None
    for matrix in (gauss_newton, hessian):
        d0, d1 = (matrix[:, :2] + damp).split(1, -1)
        h01 = matrix[:, 2:]
        determinant = d0 * d1 - h01.square()
        step = torch.cat(
            (d1 * gradient[:, :1] - h01 * gradient[:, 1:], d0 * gradient[:, 1:] - h01 * gradient[:, :1]), -1
        )
        step = step / determinant
        good = (d0 > 0) & (determinant > 0) & step.isfinite().all(-1, keepdim=True)
        move = torch.where(good, step, 0.0 if move is None else move)
    assert move is not None
    return move


class _Problems(NamedTuple):
    """A set of P problems, sorted by function: least squares of y - c f(z) - d over z0, z1, c, d.

    z = (1 - t) z0 + t z1. function: (P,) indices into `functions`. low, high: (P, 1), of the domain.
    x, t, y: (P, n) samples, t in [0, 1] and y centred. origin, width: (P, 1), x = origin + t width.
    mean: (P, 1), of y before. limit: (P, 1), the largest |c f| that is allowed.
    """

    functions: list[Function]
    eps: float
    strict: float
    function: Tensor
    low: Tensor
    high: Tensor
    x: Tensor
    t: Tensor
    y: Tensor
    origin: Tensor
    width: Tensor
    mean: Tensor
    limit: Tensor

    @classmethod
    def every(
        cls, functions, eps: float, x: Tensor, y: Tensor, origin: Tensor, width: Tensor, starts: int = 1
    ) -> "_Problems":
        """Make the problems of all functions times all edges times all starts; x, y: (n, E)."""
        count, edges = len(functions), x.shape[1]
        function = torch.arange(count, device=x.device).repeat_interleave(edges * starts)
        edge = torch.arange(edges, device=x.device).repeat_interleave(starts).repeat(count)
        low, high = x.new_tensor([search.bounds(f) for f in functions])[function].split(1, -1)
        x, y, origin, width = x.t()[edge], y.t()[edge], origin[edge, None], width[edge, None]
        mean = y.mean(-1, keepdim=True)
        span = (
            high - low
        )  # of a bounded domain, which bounds the slope, and so what `result` will keep clear of
        clear = (
            4 * eps * (span / width * x.abs().amax(-1, keepdim=True) + torch.maximum(low.abs(), high.abs()))
        )
        clear = torch.where(span.isfinite(), torch.minimum(clear, span / 2), 0.0)
        low, high = low + clear, high - clear
        return cls(
            functions,
            eps,
            2.0 * starts,
            function,
            low,
            high,
            x,
            (x - origin) / width,
            y - mean,
            origin,
            width,
            mean,
            torch.full_like(mean, torch.inf),
        )

    def within(self, limit: Tensor) -> "_Problems":
        """Return the same problems with |c f| up to limit (P,)."""
        return self._replace(limit=limit[:, None])

    def select(self, which: Tensor) -> "_Problems":
        return _Problems(*self[:3], *(value[which] for value in self[3:]))  # type: ignore[arg-type]

    def groups(self) -> list[tuple[Function, slice]]:
        """Yield the functions with the problems that each has."""
        counts = self.function.bincount(minlength=len(self.functions)).cumsum(0).tolist()
        spans = zip([0, *counts], counts, strict=False)
        return [(f, slice(*span)) for f, span in zip(self.functions, spans, strict=True) if span[0] < span[1]]

    def evaluate(self, ends: Tensor, groups) -> list[Tensor]:
        """Return f, f', f'' at the samples, each (P, n)."""
        z = torch.lerp(ends[:, :1], ends[:, 1:], self.t)
        z = torch.minimum(torch.maximum(z, self.low), self.high)
        parts = [_derivatives(function, z[part]) for function, part in groups]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def regress(self, f: Tensor, strict: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c (P, 1), centred f (P, n), residual (P, n), its mean square (P, 1) or inf."""
        largest = f.abs().amax(-1, keepdim=True)
        f = f - f.mean(-1, keepdim=True)
        good = search.usable(f, largest, self.eps, strict)
        c = search.bounded(torch.where(good, _dot(f, self.y) / _dot(f, f), 0.0), largest, self.limit)
        residual = torch.addcmul(self.y, c, f, value=-1)
        error = _dot(residual, residual) / f.shape[-1]
        return c, f, residual, torch.where(error.isfinite(), error, torch.inf)

    def system(self, ends: Tensor, groups) -> tuple[Tensor, ...]:
        """Return the mean square error (P, 1); of its half, the negative gradient (P, 2), Gauss-Newton's
        matrix and the Hessian, each as its entries 00, 11, 01 (P, 3).
        """
        raw, slope, bend = self.evaluate(ends, groups)
        c, f, residual, error = self.regress(raw, self.strict)
        square = _dot(f, f)
        inverse = torch.where(square > 0, 1 / square, 0.0)
        # derivatives of f along z1 and z0; what c and d cannot take care of is orthogonal to f and 1
        j1 = slope * self.t
        j0 = slope - j1
        along = torch.cat((_dot(f, j0), _dot(f, j1)), -1)
        g = torch.cat((_dot(j0, residual), _dot(j1, residual)), -1)
        j0 = (j0 - j0.mean(-1, keepdim=True)).addcmul_(f, along[:, :1] * inverse, value=-1)
        j1 = (j1 - j1.mean(-1, keepdim=True)).addcmul_(f, along[:, 1:] * inverse, value=-1)
        gauss_newton = c.square() * torch.cat((_dot(j0, j0), _dot(j1, j1), _dot(j0, j1)), -1)
        bend *= residual
        m1, m2 = bend * self.t, (bend * self.t).mul_(self.t)
        m0, m1, m2 = (m.sum(-1, keepdim=True) for m in (bend, m1, m2))
        curvature = torch.cat((m0 - 2 * m1 + m2, m2, m1 - m2), -1)
        first, second = [0, 1, 0], [0, 1, 1]
        cross = g[:, first] * along[:, second] + g[:, second] * along[:, first]
        hessian = gauss_newton - c * curvature - inverse * (g[:, first] * g[:, second] - c * cross)
        gradient = c * g
        if self.limit.isfinite().any():
            held, *at_limit = self._at_limit(raw, slope, f, c, residual)
            gradient, gauss_newton = (
                torch.where(held, new, old)
                for new, old in zip(at_limit, (gradient, gauss_newton), strict=True)
            )
            hessian = torch.where(held, gauss_newton, hessian)
        # an end that lies on its bound and wants to leave is held
        free = ~(((ends <= self.low) & (gradient < 0)) | ((ends >= self.high) & (gradient > 0)))
        mask = torch.cat((free, free.all(-1, keepdim=True)), -1)
        scale = 1 / f.shape[-1]
        return error, scale * gradient * free, scale * gauss_newton * mask, scale * hessian * mask

    def _at_limit(
        self, raw: Tensor, slope: Tensor, f: Tensor, c: Tensor, residual: Tensor
    ) -> tuple[Tensor, ...]:
        """Return where c is held by its limit (P, 1), and what `system` needs there."""
        largest, place = raw.abs().max(-1, keepdim=True)
        held = (c != 0) & (c.abs() * largest >= (1 - 1e-9) * self.limit)
        share = self.t.gather(-1, place)
        follows = -c * slope.gather(-1, place) / raw.gather(-1, place)
        j0, j1 = (
            c * (j - j.mean(-1, keepdim=True)) + follows * s * f
            for j, s in ((slope * (1 - self.t), 1 - share), (slope * self.t, share))
        )
        gradient = torch.cat((_dot(j0, residual), _dot(j1, residual)), -1)
        return held, gradient, torch.cat((_dot(j0, j0), _dot(j1, j1), _dot(j0, j1)), -1)

    def scaled(self, ends: Tensor, groups) -> Tensor:
        """Scale ends to |a| = 1 where the scale of a x + b only adds to d, as in the plainest form."""
        for function, part in groups:
            if function.degree == 0 and not function.step:
                a = (ends[part, 1:] - ends[part, :1]).abs() / self.width[part]
                ends[part] = torch.where(a > 0, ends[part] / a, ends[part])
        return ends

    def refine(self, ends: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Refine ends (P, 2) by damped Newton: return the better ends and their mean square errors (P,)."""
        problems, groups = self, self.groups()
        ends = self.scaled(self._steps(ends), groups)
        variance = self.y.square().mean(-1, keepdim=True)
        state = problems.system(ends, groups)
        damping = torch.full_like(variance, 1e-2)
        index = torch.arange(ends.shape[0], device=ends.device)
        found, errors = ends.clone(), state[0].clone()
        for _ in range(steps):
            error, gradient, gauss_newton, hessian = state
            move = _solve(gradient, gauss_newton, hessian, damping)
            # what a step can still gain is nothing beside the error, or the error is rounding
            flat = (gradient * move).sum(-1, keepdim=True) <= 1e-13 * error
            done = (flat & ((damping <= 1e-2) | (damping >= 1e6))) | (error <= 1e-31 * variance)
            if done.all():
                break
            if 2 * int(done.sum()) > done.shape[0]:
                keep = ~done[:, 0]
                problems, index = problems.select(keep), index[keep]
                groups = problems.groups()
                ends, variance, damping, move = (v[keep] for v in (ends, variance, damping, move))
                state = tuple(v[keep] for v in state)
            trial = problems.scaled(ends + move, groups)
            trial = torch.minimum(torch.maximum(trial, problems.low), problems.high)
            new = problems.system(trial, groups)
            better = new[0] < state[0]
            ends = torch.where(better, trial, ends)
            state = tuple(torch.where(better, v, old) for v, old in zip(new, state, strict=True))
            damping = torch.where(better, damping * 0.1, damping * 8).clamp(1e-12, 1e12)
            found[index], errors[index] = ends, state[0]
        return found, errors[:, 0]

    def _steps(self, ends: Tensor) -> Tensor:
        """Find the best split of the sorted data, exactly: a step function has no slope to follow."""
        ends = ends.clone()
        for function, part in self.groups():
            if not function.step:
                continue
            t, order = self.t[part].sort(-1)
            n = t.shape[-1]
            left = torch.arange(1, n, device=t.device)
            gain = self.y[part].gather(-1, order).cumsum(-1)[:, :-1].square() / (left * (n - left))
            gain = torch.where(t.diff(dim=-1) > 0, gain, -1.0)
            if n > 1:
                best = gain.argmax(-1, keepdim=True)
                zero = (t.gather(-1, best) + t.gather(-1, best + 1)) / 2
                ends[part] = torch.cat((-zero, 1 - zero), -1)
        return ends

    def result(self, ends: Tensor) -> _Found:
        """Return what the ends (P, 2) amount to, in the functions' plainest form."""
        slope = (ends[:, 1:] - ends[:, :1]).abs() / self.width
        margin = (
            4 * self.eps * (slope * self.x.abs().amax(-1, keepdim=True) + ends.abs().amax(-1, keepdim=True))
        )
        margin = torch.where(
            (self.high - self.low).isfinite(), 0.0, margin
        )  # `every` kept clear of both ends
        ends = torch.minimum(torch.maximum(ends, self.low + margin), self.high - margin)
        a = (ends[:, 1:] - ends[:, :1]) / self.width
        affine = torch.cat((a, ends[:, :1] - a * self.origin, torch.ones_like(a), torch.zeros_like(a)), -1)
        groups = self.groups()
        affine = torch.cat([function.canonical(affine[part]) for function, part in groups])
        z = affine[:, :1] * self.x + affine[:, 1:2]
        f = torch.cat([function.torch(z[part]) for function, part in groups])
        finite = f.isfinite().all(-1, keepdim=True)
        f = torch.where(finite, f, 0.0)  # explains nothing: c = 0
        variance = self.y.square().mean(-1, keepdim=True)
        # a curve that varies by rounding errors only is a constant
        constant = variance <= (1e-12 * (self.y + self.mean).abs().amax(-1, keepdim=True)).square()
        c, _, _, error = self.regress(f)
        affine[:, 2:3] = torch.where(constant, 0.0, c)
        affine[:, 3:] = self.mean - affine[:, 2:3] * f.mean(-1, keepdim=True)
        r2 = torch.where(finite, torch.where(constant, 1.0, 1 - error / variance), 0.0)
        term = affine[:, 2] * f.abs().amax(-1)
        return _Found(r2[:, 0], affine, error[:, 0], term.abs())
