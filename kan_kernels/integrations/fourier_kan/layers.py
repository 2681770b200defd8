"""FourierKAN (github.com/GistNoesis/FourierKAN, MIT): sines and cosines in place of B-splines.

A layer of the same name, arguments, state dict, initialisation and numbers, on the fused kernels: nothing of
size batch x out x in x gridsize exists, which the original makes several times.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..._core import checks
from ..._core.bases import MAX_FREQUENCIES
from ..._engine import dispatch
from ...functional import basis_linear


def evaluate(x: Tensor, coefficients: Tensor, bias: Tensor | None, backend: str | None = None) -> Tensor:
    """Return what a NaiveFourierKANLayer with coefficients (2, out, in, gridsize) and bias (1, out) computes.

    (..., out) in the weights' dtype, under autocast too, which leaves the original's sums alone.
    """
    _, out, features, frequencies = coefficients.shape
    # copied in runs of `frequencies` numbers; the kernels read the functions of an edge together as they lie
    weight = coefficients.permute(1, 2, 0, 3).reshape(out, features, 2 * frequencies).permute(1, 2, 0)
    shift = None if bias is None else bias.reshape(-1)
    if not torch._C._is_any_autocast_enabled():
        return basis_linear(x, weight, basis="fourier", bias=shift, backend=backend)
    with torch.autocast(x.device.type, enabled=False):
        return basis_linear(x, weight, basis="fourier", bias=shift, backend=backend)


class NaiveFourierKANLayer(nn.Module):
    """A layer of FourierKAN: a sum of cosines and sines of every input for every output.

    y[b,o] = sum_{i,g} (c[0,o,i,g-1] cos(g x[b,i]) + c[1,o,i,g-1] sin(g x[b,i])) + bias[0,o]

    Args:
        inputdim, outdim: positive sizes.
        gridsize: the number of frequencies g = 1, 2, ...; 1 to 512. c is `fouriercoeffs`.
        addbias: whether there is a bias, which is the constant term too.
        smooth_initialization: first weights that fall as 1/g^2; without it all frequencies are alike.
        backend: as for KANLinear.

    State dict: fouriercoeffs (2, outdim, inputdim, gridsize) and bias (1, outdim).

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> NaiveFourierKANLayer(2, 3, gridsize=8)(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        inputdim: int,
        outdim: int,
        gridsize: int = 300,
        addbias: bool = True,
        smooth_initialization: bool = False,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.inputdim = checks.integer("inputdim", inputdim, 1)
        self.outdim = checks.integer("outdim", outdim, 1)
        self.gridsize = checks.integer("gridsize", gridsize, 1, MAX_FREQUENCIES)
        self.addbias = checks.boolean("addbias", addbias)
        self.smooth_initialization = checks.boolean("smooth_initialization", smooth_initialization)
        dispatch.check_name("backend", backend)
        self.backend = backend
        self.fouriercoeffs = nn.Parameter(torch.empty(2, self.outdim, self.inputdim, self.gridsize))
        if self.addbias:
            self.bias = nn.Parameter(torch.empty(1, self.outdim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the original's first coefficients; the bias becomes zero."""
        coefficients = nn.init.normal_(self.fouriercoeffs)
        damping: Tensor | float = math.sqrt(self.gridsize)
        if self.smooth_initialization:
            damping = (torch.arange(self.gridsize, device=coefficients.device) + 1) ** 2
        coefficients /= math.sqrt(self.inputdim) * damping
        if self.addbias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., inputdim) to y (..., outdim)."""
        checks.rows(x, self.inputdim)
        if x.dtype in checks.HALF_DTYPES and self.fouriercoeffs.dtype == torch.float32:
            x = x.float()  # of a layer before it under autocast; the original promotes as well
        return evaluate(x, self.fouriercoeffs, self.bias if self.addbias else None, self.backend)

    def _dispatch_options(self) -> dict[str, Any]:
        return {
            "widths": (self.inputdim, self.outdim),
            "basis": "fourier",
            "functions": 2 * self.gridsize,
            "base": None,
            "device": self.fouriercoeffs.device,
            "dtype": self.fouriercoeffs.dtype,
            "backend": self.backend,
        }
