"""The stateless API of activations: a function for every channel and head, without a sum."""

import torch
from torch import Tensor
from torch.nn import functional

from .._core import checks
from .._core.bases import BSPLINE
from .._engine.layer import call


def kan_activation(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    *,
    spline_order: int,
    base_weight: Tensor | None = None,
    base: str | None = "silu",
    derivative: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Apply learnable univariate functions phi[i,h], one for every input i and head h, without a sum over i.

    v[..., i, h] = phi[i,h](x[..., i]), where
    phi[i,h](x) = base_weight[i,h] base(x) + sum_r spline_weight[i,r,h] B_r(x)

    Args:
        x: (..., in). The weights' dtype, or float32 beside 16-bit weights.
        spline_weight: (in, G+k, heads), float32, float64, bfloat16 or float16.
        grid: (in, G+2k+1) finite, non-decreasing knots, as for `kan_linear`.
        spline_order: k, 0 to 10.
        base_weight: (in, heads), present exactly if there is a base.
        base: "silu", "identity" or None.
        derivative: m > 0 evaluates phi^(m) in place of phi; up to 32.
        backend: "native", "triton" or "reference"; None leaves the choice to `use_backend` and `dispatch`.

    Returns:
        (..., in, heads) in the weights' dtype, differentiable to any order. The fused kernels lay it out with
        the inputs next to each other, so that each head is a matrix that a GEMM reads in place.

    Raises:
        TypeError, ValueError, RuntimeError: as for `kan_linear`.

    Example:
        >>> weight, grid = torch.ones(2, 3, 1), torch.linspace(-2, 2, 5).repeat(2, 1)  # G = 2, k = 1
        >>> kan_activation(torch.zeros(4, 2), weight, grid, spline_order=1, base=None).shape
        torch.Size([4, 2, 1])
    """
    spline_order, derivative = checks.spline_order(spline_order), checks.derivative(derivative)
    numbers = spline_order, base, derivative, backend
    return call(x, spline_weight, grid, base_weight, None, *numbers, BSPLINE, "kan_activation")


def basis_activation(
    x: Tensor,
    weight: Tensor,
    grid: Tensor | None = None,
    *,
    basis: str,
    base_weight: Tensor | None = None,
    base: str | None = None,
    derivative: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Apply `kan_activation` on a basis of full support, one of `basis_linear`.

    Args:
        x: (..., in), as for `kan_activation`.
        weight: (in, R, heads).
        grid, basis: as for `basis_linear`.
        base_weight: (in, heads), present exactly if there is a base.
        base, derivative, backend: as for `kan_activation`.

    Returns:
        (..., in, heads) in the weights' dtype.

    Raises:
        TypeError, ValueError, RuntimeError: as for `kan_linear`.

    Example:
        >>> weight = torch.eye(3)[None]  # T_0, T_1, T_2
        >>> basis_activation(torch.tensor([[0.5]]), weight, basis="chebyshev")
        tensor([[[ 1.0000,  0.5000, -0.5000]]])
    """
    numbers = 0, base, checks.derivative(derivative), backend
    record = checks.full_support(basis)
    return call(x, weight, grid, base_weight, None, *numbers, record, "kan_activation")


def multi_head_kan_linear(
    x: Tensor,
    spline_weight: Tensor,
    mix: Tensor,
    grid: Tensor,
    *,
    spline_order: int,
    base_weight: Tensor | None = None,
    base: str | None = "silu",
    bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Apply a layer whose edge functions are tied: y[..., o] = sum_i mix[i,o] f[h(o),i](x[..., i]) + bias[o].

    The outputs are in `heads` groups of neighbours, h(o) = o // (out / heads); f are the functions of
    `kan_activation`. What that op returns, (..., in, heads), is the largest tensor there is; the rest is
    torch's GEMM.

    Args:
        x, spline_weight, grid, spline_order, base_weight, base, backend: as for `kan_activation`.
        mix: (in, out), in the weights' dtype; heads divides out.
        bias: (out,).

    Returns:
        (..., out) in the weights' dtype, differentiable to any order.

    Raises:
        TypeError, ValueError, RuntimeError: naming the argument.

    Example:
        >>> layer = {"spline_weight": torch.ones(2, 3, 1), "grid": torch.linspace(-2, 2, 5).repeat(2, 1)}
        >>> x, mix = torch.zeros(4, 2), torch.ones(2, 6)
        >>> multi_head_kan_linear(x, mix=mix, **layer, spline_order=1, base=None)[0]
        tensor([2., 2., 2., 2., 2., 2.])
    """
    checks.tensor("x", x)
    checks.tensor("spline_weight", spline_weight, 3)
    checks.tensor("mix", mix, 2)
    features, _, heads = spline_weight.shape
    checks.heads(heads, mix.shape[1])
    checks.operand("mix", mix, (features, mix.shape[1]), spline_weight.dtype, spline_weight.device)
    if bias is not None:
        checks.operand("bias", bias, (mix.shape[1],), mix.dtype, mix.device)
    v = kan_activation(
        x, spline_weight, grid, spline_order=spline_order, base_weight=base_weight, base=base, backend=backend
    )
    mix, bias = mix.to(v.dtype), None if bias is None else bias.to(v.dtype)  # autocast's
    if heads == 1:
        return functional.linear(v.squeeze(-1), mix.t(), bias)
    rows = v.flatten(0, -3) if v.dim() > 3 else v if v.dim() == 3 else v.unsqueeze(0)
    y = torch.bmm(rows.permute(2, 0, 1), mix.unflatten(1, (heads, -1)).transpose(0, 1))
    y = y.transpose(0, 1).reshape(*x.shape[:-1], mix.shape[1])
    return y if bias is None else y + bias
