"""KANConv1d, KANConv2d and KANConv3d, with the manners of torch.nn.Conv."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core import checks
from ..functional.conv import check_image, kan_conv
from .spline_module import SplineModule

MODES = ("zeros", "reflect", "replicate", "circular")

torch.fx.wrap("kan_conv")  # symbolic_trace takes its calls as they stand


class KANConv(SplineModule):
    """The common part of the three; `DIMS` is the number of spatial dimensions."""

    DIMS: int
    spline_weight: nn.Parameter
    base_weight: nn.Parameter | None
    bias: nn.Parameter | None
    padding_mode = "zeros"  # of modules that were pickled before it could be another

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        grid_size: int = 5,
        spline_order: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        base: str | None = "silu",
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels = checks.integer("in_channels", in_channels, 1)
        self.out_channels = out_channels = checks.integer("out_channels", out_channels, 1)
        self.groups = groups = checks.integer("groups", groups, 1)
        bias = checks.boolean("bias", bias)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"groups: got {groups}, expected a divisor of {name}={channels}")
        options = (grid_size, spline_order, grid_range, base, backend)
        parameter, dtype = self.set_options(*options, device, dtype)
        self.kernel_size = checks.each("kernel_size", kernel_size, self.DIMS, 1)
        self.stride = checks.each("stride", stride, self.DIMS, 1)
        self.dilation = checks.each("dilation", dilation, self.DIMS, 1)
        self.padding = checks.padding(padding, self.DIMS, self.stride)
        if padding_mode not in MODES:
            raise ValueError(
                f"padding_mode: got {padding_mode!r}, expected one of {', '.join(map(repr, MODES))}"
            )
        self.padding_mode = padding_mode
        edges = (*self.kernel_size, out_channels // groups)
        self.spline_weight = parameter(in_channels, self.grid_size + self.spline_order, *edges)
        self.register_parameter("base_weight", parameter(in_channels, *edges) if base else None)
        self.register_parameter("bias", parameter(out_channels) if bias else None)
        self.make_grid(in_channels, device, dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise as KANLinear does; the inputs of an output are its group's channels at every tap."""
        self.reset_grid()
        taps = math.prod(self.kernel_size)
        fan_in, fan_out = self.in_channels // self.groups * taps, self.out_channels // self.groups * taps
        std = (1.0 if self.base is None else 0.1) / fan_in**0.5
        nn.init.normal_(self.spline_weight, std=std, generator=generator)
        if self.base_weight is not None:
            bound = math.sqrt(6.0 / (fan_in + fan_out))  # Xavier, with torch's fans of a convolution
            nn.init.uniform_(self.base_weight, -bound, bound, generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, C, *size) to y (N, O, *out), or both without N."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":  # these positions have values, which the functions meet
            check_image(x, self.in_channels, self.DIMS)
            if any(around := self._around()):
                x = nn.functional.pad(x, around, self.padding_mode)
            padding = 0
        return kan_conv(
            x,
            self.spline_weight,
            self.grid,
            spline_order=self.spline_order,
            base_weight=self.base_weight,
            base=self.base,
            bias=self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            backend=self.backend,
        )

    def _around(self) -> list[int]:
        """Return how many positions are padded, as torch pads: the last axis first."""
        if self.padding == "valid":
            return [0] * 2 * self.DIMS
        if self.padding == "same":
            totals = [(k - 1) * d for k, d in zip(self.kernel_size, self.dilation, strict=True)]
            return [n for total in reversed(totals) for n in (total // 2, total - total // 2)]
        return [n for size in reversed(self.padding) for n in (size, size)]  # type: ignore[misc]

    @torch.no_grad()
    def load_conv_kan(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a layer of torch-conv-kan (KANConv1DLayer, 2D, 3D): its convolution part.

        `base_conv.<g>.weight` (O/g, C/g, *kernel) and `spline_conv.<g>.weight` (O/g, C/g * (G+k), *kernel),
        the G+k rows of a channel side by side, become base_weight (C, *kernel, O/g) and spline_weight
        (C, G+k, *kernel, O/g). The functions agree where it was built with nn.SiLU or nn.Identity and this
        module with "silu" or "identity"; its default is GELU, which is none of ours. Norm, PReLU and dropout
        follow the convolution there and are left to modules of their own.

        Raises:
            KeyError, ValueError: a weight is missing or has another shape; nothing is loaded then.
        """
        if self.base_weight is None:
            raise ValueError("base: got None, expected a module with a base to load base_conv into")
        inputs, outputs = self.in_channels // self.groups, self.out_channels // self.groups
        rows = self.grid_size + self.spline_order
        splines: list[Tensor] = []
        bases: list[Tensor] = []
        for name, channels, parts in (("spline_conv", inputs * rows, splines), ("base_conv", inputs, bases)):
            for group in range(self.groups):
                key = f"{name}.{group}.weight"
                if key not in state:
                    raise KeyError(f"state: has no {key!r}, expected one for each of {self.groups} groups")
                expected = (outputs, channels, *self.kernel_size)
                if tuple(state[key].shape) != expected:
                    raise ValueError(
                        f"state[{key!r}]: got shape {tuple(state[key].shape)}, expected {expected}"
                    )
                parts.append(state[key].movedim(0, -1))
        self.spline_weight.copy_(torch.cat([part.unflatten(0, (inputs, rows)) for part in splines]))
        self.base_weight.copy_(torch.cat(bases))

    def _apply(self, fn, recurse=True):
        """Cast or move everything. No memory format is for weights: those in torch are of images alone."""

        def flat(t: Tensor) -> Tensor:
            if nn.parameter.is_lazy(t):
                return fn(t)
            return fn(t) if t.dim() < 4 else fn(t.data.flatten(2)).unflatten(2, t.shape[2:])

        return super()._apply(flat, recurse)

    def _dispatch_options(self) -> dict[str, Any]:
        kernel = "x".join(map(str, self.kernel_size))
        return {
            "widths": (self.in_channels // self.groups, self.spline_weight[0, 0].numel()),
            "op": "kan_conv",
            "what": f"{self.in_channels} -> {self.out_channels}, {kernel}",
            **self.options_of_dispatch(),
        }

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}",
            f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}",
            self.options_repr(self.bias is not None),
        ]
        if self.padding_mode != "zeros":
            parts.insert(2, f"padding_mode={self.padding_mode!r}")
        return ", ".join(parts)


DOC = """Replaces nn.Conv{dims}d: a learnable univariate function for each channel, tap and output.

    y[b, o, p] = sum_{{c, t}} phi[c, t, o](x[b, c, p * stride + t * dilation - padding]) + bias[o],
    phi(x) = base_weight base(x) + sum_r spline_weight[r] B_r(x)

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for
            nn.Conv{dims}d.
        padding_mode: "zeros", where padded positions contribute zero, whatever the functions are at zero;
            "reflect", "replicate" or "circular", where they have these values of x.
        grid_size, spline_order, grid_range, base, backend, device, dtype: as for KANLinear.

    Attributes:
        spline_weight: (C, G+k, *kernel, O / groups). base_weight: (C, *kernel, O / groups) or None.
        bias: (O,) or None. grid: buffer (C, G+2k+1), the knots of each channel, shared by its taps.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> KANConv{dims}d(2, 4, kernel_size=3)(torch.zeros(1, 2, *{dims} * [8])).shape[1]
        4
    """


class KANConv1d(KANConv):
    __doc__ = DOC.format(dims=1)
    DIMS = 1


class KANConv2d(KANConv):
    __doc__ = DOC.format(dims=2)
    DIMS = 2


class KANConv3d(KANConv):
    __doc__ = DOC.format(dims=3)
    DIMS = 3
