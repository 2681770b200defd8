"""KANFeedForward: a transformer's MLP block of multi-head KAN layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core import checks
from .._core.function import func_or_forward_mode
from .heads import MultiHeadKANLinear


class LayerNorm(nn.LayerNorm):
    """A layer norm as torch's, computed by its definition under torch.func and in forward mode.

    There torch's own is wrong where forward mode is differentiated again: jacrev(jacfwd), jacfwd(jacfwd), a
    gradient of a tangent.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., features) to mean 0 and variance 1 over the features."""
        if not func_or_forward_mode():
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True)
        return (centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()).to(x.dtype)


NORMS = {"layer": LayerNorm, "rms": nn.RMSNorm, None: None}


class KANFeedForward(nn.Module):
    """Replaces a transformer's MLP block, Linear - GELU - Linear, residual connection outside.

    Each of its two layers has a normalisation without parameters in front, so that what the splines see has
    variance 1, whatever the model does, and stays within knots on (-3, 3) but for 3 in 1000 of a normal
    distribution. Beyond them the base carries value and gradient; `grids.outside` says how much is there.
    Third and higher derivatives by reverse mode, outside of torch.func, ask for norm="rms": torch's layer
    norm has them wrong.

    Args:
        d_model: features of x and of the result.
        d_hidden: features between the layers.
        heads: of both layers: a divisor of d_model and of d_hidden.
        norm: "layer", "rms" or None.
        dropout: probability of zeroing a hidden feature in training, in front of the second normalisation.
        bias, grid_size, spline_order, grid_range, base, backend, device, dtype: as for MultiHeadKANLinear.

    Attributes:
        up: MultiHeadKANLinear(d_model, d_hidden). down: MultiHeadKANLinear(d_hidden, d_model).

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> KANFeedForward(32, 128, heads=4)(torch.zeros(2, 7, 32)).shape
        torch.Size([2, 7, 32])
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        heads: int = 1,
        *,
        norm: str | None = "layer",
        dropout: float = 0.0,
        bias: bool = False,
        grid_size: int = 8,
        spline_order: int = 3,
        grid_range: Sequence[float] = (-3.0, 3.0),
        base: str | None = "silu",
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d_model = checks.integer("d_model", d_model, 1)
        d_hidden = checks.integer("d_hidden", d_hidden, 1)
        if not isinstance(norm, (str, type(None))) or norm not in NORMS:
            raise ValueError(f"norm: got {norm!r}, expected 'layer', 'rms' or None")
        heads = checks.integer("heads", heads, 1)
        for name, features in (("d_model", d_model), ("d_hidden", d_hidden)):
            if features % heads:
                raise ValueError(
                    f"heads: got {heads}, expected a divisor of {name}={features}: "
                    f"{checks.divisors(features)}"
                )
        dropout = checks.nonnegative("dropout", dropout, 1.0)
        options: dict[str, Any] = {
            "grid_size": grid_size, "spline_order": spline_order, "grid_range": grid_range, "base": base,
            "bias": bias, "backend": backend, "device": device, "dtype": dtype,
        }  # fmt: skip
        self.norm = _norm(norm, d_model)
        self.up = MultiHeadKANLinear(d_model, d_hidden, heads, **options)
        self.hidden_norm = _norm(norm, d_hidden)
        self.dropout = nn.Dropout(dropout)
        self.down = MultiHeadKANLinear(d_hidden, d_model, heads, **options)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights of both layers anew.

        Args:
            generator: of the random numbers; torch's global one by default.
        """
        self.up.reset_parameters(generator)
        self.down.reset_parameters(generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_model) to y (..., d_model)."""
        y: Tensor = self.down(self.hidden_norm(self.dropout(self.up(self.norm(x)))))
        return y


def _norm(name: str | None, features: int) -> nn.Module:
    """Return a normalisation to variance 1 that has no parameters."""
    kind: Any = NORMS[name]
    return nn.Identity() if kind is None else kind(features, elementwise_affine=False)
