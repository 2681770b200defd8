"""The recurrences of the classical orthogonal polynomials, for `basis_linear` with basis="orthogonal"."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._core import checks
from .._core.bases import ORTHOGONAL

Step = tuple[float, float, float]  # a, b, c of P_n = (a x + b) P_{n-1} - c P_{n-2}


def _jacobi(n: int, alpha: float, beta: float) -> Step:
    both = alpha + beta
    if n == 1:
        return (both + 2) / 2, (alpha - beta) / 2, 0.0
    at, scale = 2 * n + both, 2 * n * (n + both)
    return (
        (at - 1) * at / scale,
        (at - 1) * (alpha**2 - beta**2) / (scale * (at - 2)),
        2 * (n + alpha - 1) * (n + beta - 1) * at / (scale * (at - 2)),
    )


_FAMILIES: dict[str, tuple[Callable[..., Step], dict[str, float]]] = {
    "legendre": (lambda n: ((2 * n - 1) / n, 0.0, (n - 1) / n), {}),
    "jacobi": (_jacobi, {"alpha": -1.0, "beta": -1.0}),
    "gegenbauer": (lambda n, lam: (2 * (n + lam - 1) / n, 0.0, (n + 2 * lam - 2) / n), {"lam": -0.5}),
    "hermite": (lambda n: (2.0, 0.0, 2.0 * (n - 1)), {}),
    "laguerre": (lambda n, alpha: (-1 / n, (2 * n - 1 + alpha) / n, (n - 1 + alpha) / n), {"alpha": -1.0}),
}
"""family -> (its step, the parameters with the numbers that they have to be above)."""


def orthogonal_polynomials(
    family: str,
    functions: int,
    in_features: int,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    lam: float | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the grid of `basis_linear` for a classical family: the same recurrence for every feature.

    "legendre" P_n, "jacobi" P_n^(alpha, beta), "gegenbauer" C_n^(lam), "hermite" H_n (the physicists') and
    "laguerre" L_n^(alpha), normalised as in DLMF table 18.3.1; the recurrences are DLMF 18.9.1. The first
    three are meant for x in [-1, 1]. Any other (in, 3R) numbers a, b, c are a basis as well:
    P_r = (a_r x + b_r) P_{r-1} - c_r P_{r-2} with P_{-1} = 1 and P_{-2} = 0.

    Args:
        family: a name of these.
        functions: R, 1 to 256: the degrees 0 to R-1.
        in_features: rows of the grid.
        alpha, beta: above -1, exactly for the families that have them; "laguerre" without alpha takes 0.
        lam: above -1/2 and not 0, exactly for "gegenbauer".
        dtype: float32 or float64; None means torch's default.
        device: where the grid lies.

    Returns:
        (in_features, 3 R): a, then b, then c of every function.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> from kan_kernels import functional as F
        >>> grid = orthogonal_polynomials("legendre", 3, in_features=1)
        >>> F.basis_linear(torch.tensor([[0.5]]), torch.eye(3)[None], grid, basis="orthogonal")
        tensor([[ 1.0000,  0.5000, -0.1250]])
    """
    if family not in _FAMILIES:
        raise ValueError(f"family: got {family!r}, expected one of {', '.join(map(repr, _FAMILIES))}")
    step, bounds = _FAMILIES[family]
    functions = checks.integer("functions", functions, 1, ORTHOGONAL.most)
    in_features = checks.integer("in_features", in_features, 1)
    if family == "laguerre" and alpha is None:
        alpha = 0.0
    parameters = {}
    for name, value in (("alpha", alpha), ("beta", beta), ("lam", lam)):
        if name not in bounds:
            if value is not None:
                raise ValueError(f"{name}: got {value!r}, expected None: {family!r} has none")
            continue
        parameters[name] = checks.above(name, value, bounds[name])
    if parameters.get("lam") == 0.0:
        raise ValueError("lam: got 0, where all polynomials but the first are 0; expected another number")
    row = [(0.0, 1.0, 0.0), *(step(n, **parameters) for n in range(1, functions))]
    if functions > 1:
        row[1] = (*row[1][:2], 0.0)  # there is no P_{-1} in P_1
    if not all(math.isfinite(number) for numbers in row for number in numbers):
        raise ValueError(f"{family}: got {parameters}, whose recurrence is not finite in float64")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    grid = torch.tensor(row, dtype=torch.float64).t().flatten()
    return grid.to(device=device, dtype=dtype).repeat(in_features, 1)
