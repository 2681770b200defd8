"""Learnable activations, and layers whose edge functions are tied: KANActivation, MultiHeadKANLinear."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from .._core import checks
from .._core.bases import BASE_CODES
from ..backends import reference
from .spline_module import SplineModule


class HeadFunctions(SplineModule):
    """The functions f[h,i], one for every input and head: what both modules have in common.

    A state dict of another grid size is taken over, as KANLinear does.
    """

    in_features: int  # functions of a head
    heads: int
    base_weight: nn.Parameter | None

    def make_functions(self, functions: int, heads: int, parameter: Any) -> None:
        """Register the parameters, their values still to be set."""
        self.spline_weight = parameter(functions, self.grid_size + self.spline_order, heads)
        self.register_parameter("base_weight", parameter(functions, heads) if self.base else None)

    @torch.no_grad()
    def reset_functions(self, generator: torch.Generator | None) -> None:
        """Initialise with the base and a little of a spline; from a spline alone where there is no base."""
        self.reset_grid()
        nn.init.normal_(self.spline_weight, std=1.0 if self.base is None else 0.1, generator=generator)
        if self.base_weight is not None:
            nn.init.ones_(self.base_weight)

    def function_rows(self, x: Tensor) -> Tensor:
        """Return inputs of the module as rows (B, functions), as its functions see them."""
        return x.reshape(-1, self.in_features)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        weight, grid = state_dict.get(prefix + "spline_weight"), state_dict.get(prefix + "grid")
        if weight is not None and grid is not None:
            order, own = self.spline_order, self.spline_weight.shape
            fits = weight.dim() == 3 and weight.shape[::2] == own[::2] and weight.shape[1] > order
            if fits and grid.shape[1:] == (weight.shape[1] + order + 1,) and weight.shape[1] != own[1]:
                self._resize(weight.shape[1] - order)
        super()._load_from_state_dict(state_dict, prefix, *args)


class KANActivation(HeadFunctions):
    """Replaces nn.GELU or nn.PReLU: a learnable function, base plus B-spline, for every channel.

    v[...,c] = base_weight[c] base(x[...,c]) + sum_r spline_weight[c,r] B_r(x[...,c])

    Args:
        features: channels of x.
        heads: functions of every channel; with more than one, the result has a last dimension of that size.
        grid_size, spline_order, grid_range, base, backend, device, dtype: as for KANLinear.
        dim: the channel axis of x. Other axes than the last cost a copy.
        share: how many neighbouring channels have one function: a divisor of features, or "all".

    Attributes:
        spline_weight: (features / share, G+k, heads). base_weight: (features / share, heads) or None.
        grid: buffer (features / share, G+2k+1).

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> KANActivation(64, dim=1)(torch.zeros(8, 64, 5, 5)).shape
        torch.Size([8, 64, 5, 5])
    """

    def __init__(
        self,
        features: int,
        heads: int = 1,
        grid_size: int = 5,
        spline_order: int = 3,
        *,
        dim: int = -1,
        share: int | str = 1,
        grid_range: Sequence[float] = (-3.0, 3.0),
        base: str | None = "silu",
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features = checks.integer("features", features, 1)
        self.heads = checks.integer("heads", heads, 1)
        self.dim = checks.integer("dim", dim, -64, 63)
        self.share = _share(share, self.features)
        self.in_features = self.features // self.share
        options = (grid_size, spline_order, grid_range, base, backend)
        parameter, dtype = self.set_options(*options, device, dtype)
        self.make_functions(self.in_features, self.heads, parameter)
        self.make_grid(self.in_features, device, dtype)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise with the base activation itself, and spline coefficients from N(0, 0.1^2).

        Args:
            generator: of the random numbers; torch's global one by default.
        """
        self.reset_functions(generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with its channels at `dim`, to the same shape; with heads, one more dimension follows."""
        last = self._channels_last(x)
        spline_weight: Tensor = self.spline_weight
        base_weight: Tensor | None = self.base_weight
        grid = self.grid
        if self.share > 1:
            spline_weight = spline_weight.repeat_interleave(self.share, 0)
            base_weight = None if base_weight is None else base_weight.repeat_interleave(self.share, 0)
            grid = grid.repeat_interleave(self.share, 0)
        options: dict[str, Any] = {"base_weight": base_weight, "base": self.base, "backend": self.backend}
        v = F.kan_activation(last, spline_weight, grid, spline_order=self.spline_order, **options)
        v = v.squeeze(-1) if self.heads == 1 else v
        if last is x:
            return v
        return v.movedim(x.dim() - 1, self.dim if self.dim >= 0 else self.dim + x.dim())

    def function_rows(self, x: Tensor) -> Tensor:
        rows = self._channels_last(x).reshape(-1, self.in_features, self.share)
        return rows.transpose(1, 2).reshape(-1, self.in_features)

    def _channels_last(self, x: Tensor) -> Tensor:
        checks.tensor("x", x)
        if not -x.dim() <= self.dim < x.dim() or x.shape[self.dim] != self.features:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected {self.features} channels in dimension {self.dim}"
            )
        return x if self.dim in (-1, x.dim() - 1) else x.movedim(self.dim, -1)

    def extra_repr(self) -> str:
        parts = [f"{self.features}, heads={self.heads}, dim={self.dim}, share={self.share}"]
        return ", ".join([*parts, self.options_repr(None)])

    def _dispatch_options(self) -> dict[str, Any]:
        widths = (self.features, self.heads)
        what = f"{self.features} x {self.heads}"
        return {"widths": widths, "op": "kan_activation", "what": what, **self.options_of_dispatch()}


class MultiHeadKANLinear(HeadFunctions):
    """A KANLinear with tied edge functions, at about the price of nn.Linear with the same widths.

    y[...,o] = sum_i mix[i,o] f[h(o),i](x[...,i]) + bias[o],
    f[h,i](x) = base_weight[i,h] base(x) + sum_r spline_weight[i,r,h] B_r(x)

    The outputs are in `heads` groups of neighbours; within one, all edges of an input have its function, each
    times a number of its own. With heads = out_features these are all functions of a KANLinear.

    Args:
        in_features, out_features: positive sizes.
        heads: a divisor of out_features.
        grid_size, spline_order, grid_range, base, bias, backend, device, dtype: as for KANLinear.

    Attributes:
        spline_weight: (in, G+k, heads). base_weight: (in, heads) or None. mix: (in, out).
        bias: (out,) or None. grid: buffer (in, G+2k+1).

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> MultiHeadKANLinear(8, 6, heads=2)(torch.zeros(4, 8)).shape
        torch.Size([4, 6])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        heads: int = 1,
        grid_size: int = 5,
        spline_order: int = 3,
        *,
        grid_range: Sequence[float] = (-1.0, 1.0),
        base: str | None = "silu",
        bias: bool = False,
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features = checks.integer("in_features", in_features, 1)
        self.out_features = out_features = checks.integer("out_features", out_features, 1)
        self.heads = checks.heads(heads, out_features)
        bias = checks.boolean("bias", bias)
        options = (grid_size, spline_order, grid_range, base, backend)
        parameter, dtype = self.set_options(*options, device, dtype)
        self.make_functions(in_features, self.heads, parameter)
        self.mix = parameter(in_features, out_features)
        self.register_parameter("bias", parameter(out_features) if bias else None)
        self.make_grid(in_features, device, dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights that keep the variance of standard normal inputs, and about that of gradients.

        The functions start as the base and a little of a spline; mix comes from N(0, 1 / (in E[f(x)^2])) for
        x from N(0, 1), so that the outputs have variance 1. For silu E[f'(x)^2] is E[f(x)^2] to 7%, so that
        gradients keep theirs, but for 3 to 5% in size, where in = out, or in a pair in -> hidden -> in.

        Args:
            generator: of the random numbers; torch's global one by default.
        """
        self.reset_functions(generator)
        std = 1.0 / math.sqrt(self.in_features * self._mean_square())
        nn.init.normal_(self.mix, std=std, generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _mean_square(self) -> float:
        """Return E[f(x)^2] for x from N(0, 1), over the drawing of the splines too."""
        if self.spline_weight.is_meta:
            return 1.0
        x = torch.special.ndtri((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000).unsqueeze(1)
        knots = self.grid[:1].double().cpu()
        spread = 1.0 if self.base is None else 0.1
        square = spread**2 * F.bspline_basis(x, knots, self.spline_order).square().sum(-1)
        if self.base is not None:
            square = square + reference.base_activation(x, BASE_CODES[self.base]).square()
        return max(float(square.mean()), 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        return F.multi_head_kan_linear(
            x,
            self.spline_weight,
            self.mix,
            self.grid,
            spline_order=self.spline_order,
            base_weight=self.base_weight,
            base=self.base,
            bias=self.bias,
            backend=self.backend,
        )

    @torch.no_grad()
    def edge_weights(self) -> tuple[Tensor, Tensor | None]:
        """Return spline_weight (in, G+k, out) and base_weight (in, out) of the same layer as a KANLinear."""
        group = self.out_features // self.heads
        base = self.base_weight
        return (
            self.spline_weight.repeat_interleave(group, 2) * self.mix.unsqueeze(1),
            None if base is None else base.repeat_interleave(group, 1) * self.mix,
        )

    def extra_repr(self) -> str:
        parts = [f"{self.in_features}, {self.out_features}, heads={self.heads}"]
        return ", ".join([*parts, self.options_repr(self.bias is not None)])

    def _dispatch_options(self) -> dict[str, Any]:
        what = f"{self.in_features} -> {self.out_features}, {self.heads} heads"
        widths = (self.in_features, self.heads)
        return {"widths": widths, "op": "kan_activation", "what": what, **self.options_of_dispatch()}


def _share(value: object, features: int) -> int:
    """Return how many channels have one function."""
    expected = f"a divisor of features={features}: {checks.divisors(features)}; or 'all'"
    if isinstance(value, str):
        if value != "all":
            raise ValueError(f"share: got {value!r}, expected {expected}")
        return features
    try:
        number = checks.integer("share", value, 1)
    except (TypeError, ValueError) as error:
        raise type(error)(f"share: got {value!r}, expected {expected}") from None
    if features % number:
        raise ValueError(f"share: got {number}, expected {expected}")
    return number
