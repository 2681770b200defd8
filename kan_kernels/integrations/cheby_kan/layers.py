"""ChebyKAN (github.com/SynodicMonth/ChebyKAN): Chebyshev polynomials of tanh(x) in place of B-splines.

A layer of the same name, arguments, state dict, initialisation and numbers, on the fused kernels. Its
polynomials come from a recurrence that is finite where tanh saturates: T_r'(1) = r^2 times tanh', never NaN.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..._core import checks
from ..._core.bases import MAX_FUNCTIONS
from ..._engine import dispatch
from ...functional import basis_linear


def evaluate(x: Tensor, coefficients: Tensor, backend: str | None = None) -> Tensor:
    """Return what a ChebyKANLayer with coefficients (in, out, degree + 1) computes: (rows, out)."""
    rows = torch.tanh(x.reshape(-1, coefficients.shape[0]))
    return basis_linear(rows, coefficients.transpose(1, 2), basis="chebyshev", backend=backend)


class ChebyKANLayer(nn.Module):
    """A layer of ChebyKAN: y[b,o] = sum_{i,r} cheby_coeffs[i,o,r] T_r(tanh(x[b,i])), r = 0 .. degree.

    Args:
        input_dim, output_dim: positive sizes.
        degree: 0 to 255.
        backend: as for KANLinear.

    State dict: cheby_coeffs (in, out, degree + 1); arange (degree + 1), which older checkpoints lack.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> ChebyKANLayer(2, 3, degree=4)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    arange: Tensor

    def __init__(self, input_dim: int, output_dim: int, degree: int, *, backend: str | None = None) -> None:
        super().__init__()
        self.inputdim = checks.integer("input_dim", input_dim, 1)
        self.outdim = checks.integer("output_dim", output_dim, 1)
        self.degree = checks.integer("degree", degree, 0, MAX_FUNCTIONS - 1)
        dispatch.check_name("backend", backend)
        self.backend = backend
        self.cheby_coeffs = nn.Parameter(torch.empty(self.inputdim, self.outdim, self.degree + 1))
        self.register_buffer("arange", torch.arange(self.degree + 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the original's first coefficients."""
        nn.init.normal_(self.cheby_coeffs, mean=0.0, std=1 / (self.inputdim * (self.degree + 1)))
        self.arange.copy_(torch.arange(self.degree + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., input_dim) to (rows, output_dim): leading dimensions become one, as in the original."""
        checks.rows(x, self.inputdim)
        return evaluate(x, self.cheby_coeffs, self.backend)

    def _dispatch_options(self) -> dict[str, Any]:
        return {
            "widths": (self.inputdim, self.outdim),
            "basis": "chebyshev",
            "functions": self.degree + 1,
            "base": None,
            "device": self.cheby_coeffs.device,
            "dtype": self.cheby_coeffs.dtype,
            "backend": self.backend,
        }

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.setdefault(prefix + "arange", self.arange)
        super()._load_from_state_dict(state_dict, prefix, *args)
