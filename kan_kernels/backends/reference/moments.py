"""Mean and standard deviation of edges in plain torch: a linear and a quadratic form of a Gram matrix."""

import torch
from torch import Tensor

from .edges import edge_gram, edge_gram_grad_input

Some = Tensor | None

# A variance this small beside the terms it came from is rounding.
_ROUNDING = 64 * torch.finfo(torch.float64).eps


def edge_moments(
    x, spline_weight, base_weight, grid, order, base, correction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (mean, std, spread, m) of the edges, float64, as the op `edge_moments`.

    With S the matrix of sums over the rows of products of the features f = (splines, base), divided by their
    number, m their means and c the coefficients, spread = (S - m m') c and the variance is c' spread.

    x: (B, in), any dtype. weights: (in, n, out), (in, out) or None. grid: (in, G+2k+1) float64.

    Returns:
        mean, std (in, out), spread (in, n or n+1, out) and m (in, 1, n or n+1).
    """
    sums = edge_gram(x, None, grid, order, base)
    return moments_of_sums(sums, spline_weight, base_weight, x.shape[0], order, base, correction)


def moments_of_sums(
    sums: tuple[Tensor, Tensor], spline_weight: Tensor, base_weight: Some, count: int, order: int, base: int,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (mean, std, spread, m), differentiable; std is 0, without gradient, if it is rounding."""
    (band, border), (features, n, _) = sums, spline_weight.shape
    size = n + bool(base)
    flat = torch.cat((band.flatten(1), border.flatten(1), band.new_zeros(features, 1)), 1)
    matrix = flat[:, _places(n, order, bool(base), flat)].view(features, size + 1, size) / count
    square, m = matrix[:, :size], matrix[:, size:]
    c = _coefficients(spline_weight, base_weight)
    mean = torch.bmm(m, c).squeeze(1)
    spread = torch.bmm(torch.baddbmm(square, m.mT, m, alpha=-1), c)
    variance = (c * spread).sum(1)
    scale = torch.bmm(m[:, :, :n], c[:, :n].abs()).squeeze(1).square()
    if base:
        scale = torch.addcmul(scale, square[:, n, n:], c[:, n].square())
    constant = variance <= _ROUNDING * scale
    std = torch.where(constant, 1.0, variance).sqrt().masked_fill(constant, 0.0)
    return mean, std * (count / (count - correction)) ** 0.5, spread, m


def edge_moments_backward(
    x, spline_weight, base_weight, grid, order, base, correction, d_mean: Some, d_std: Some, std, spread, m,
    need_x: bool, need_weight: bool,
) -> tuple[Some, Some, Some]:  # fmt: skip
    """Return the gradients of <d_mean, mean> + <d_std, std>: of x (B, in) float64, and of the weights."""
    d_mean = torch.zeros_like(std) if d_mean is None else d_mean
    d_std = torch.zeros_like(std) if d_std is None else d_std
    count, n = x.shape[0], spline_weight.shape[1]
    c = _coefficients(spline_weight, base_weight)
    d_variance = (d_std * (0.5 * count / (count - correction)) / std).masked_fill(std == 0, 0.0)
    d_mean, d_variance = d_mean.unsqueeze(1), d_variance.unsqueeze(1)
    dx = d_spline = d_base = None
    if need_weight:
        d = torch.addcmul(m.mT * d_mean, spread, d_variance, value=2.0)
        d_spline = d[:, :n].to(spline_weight.dtype)
        d_base = d[:, n].to(spline_weight.dtype) if base else None
    if need_x:
        d_square = torch.bmm(c * d_variance, c.mT)
        d_m = torch.baddbmm(torch.bmm(d_mean, c.mT), m, d_square, alpha=-2)
        d_sums = torch.cat((d_square, d_m), 1).reshape(c.shape[0], -1) / count
        rows = 1 + bool(base)
        d_flat = d_sums.new_zeros(c.shape[0], n * (order + 1) + rows * (n + rows) + 1)
        d_flat.index_add_(1, _places(n, order, bool(base), d_sums), d_sums)
        d_band, d_border, _ = d_flat.split((n * (order + 1), rows * (n + rows), 1), 1)
        d_band, d_border = d_band.view(-1, n, order + 1), d_border.view(-1, rows, n + rows)
        dx = edge_gram_grad_input(x, None, grid, order, base, d_band, d_border)
    return dx, d_spline, d_base


def _coefficients(spline_weight: Tensor, base_weight: Some) -> Tensor:
    """Return (in, G+k, out), and the base as one more row, in float64."""
    if base_weight is None:
        return spline_weight.double()
    return torch.cat((spline_weight, base_weight.unsqueeze(1)), 1).double()


_known_places: dict[tuple, Tensor] = {}


def _places(n: int, order: int, base: bool, row: Tensor) -> Tensor:
    """Return where the matrix of all products of (splines, base), then the sums of each, are in the row
    (band, border, 0) that `Gram` computes for a feature. `border` is described in `reference.edge_gram`.
    """
    key = (n, order, base, row.device)
    real = not torch.compiler.is_compiling() and type(row) is Tensor  # not a fake one, of no use later
    if real and key in _known_places:
        return _known_places[key]
    border = n * (order + 1)
    zero = border + (1 + base) * (n + 1 + base)
    bases = list(range(n)) + [n + 1] * base  # positions in a row of border
    places = []
    for r in range(n):
        for q in range(n):
            places.append(min(r, q) * (order + 1) + abs(r - q) if abs(r - q) <= order else zero)
        if base:
            places.append(border + n + 2 + r)
    if base:
        places += [border + n + 2 + at for at in bases]
    places += [border + at for at in bases]
    if not real:
        return torch.tensor(places, device=row.device)
    with torch.inference_mode(False):  # a tensor that training can use as well
        result = torch.tensor(places, device=row.device)
    if type(result) is Tensor and len(_known_places) < 256:
        _known_places[key] = result
    return result
