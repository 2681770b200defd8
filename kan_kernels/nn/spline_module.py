"""What modules with knots share: their options, and the knots themselves."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core import checks
from .._core.tensor_cache import readable
from .._core.tracing import untraced
from .._engine import dispatch

Range = tuple[float, float]


class SplineModule(nn.Module):
    """A module with the buffer `grid` (in, G+2k+1), uniform at first, never in 16 bits.

    A subclass calls `set_options`, makes its parameters, and calls `make_grid`.
    """

    grid: Tensor
    spline_weight: nn.Parameter
    grid_size: int
    spline_order: int
    base: str | None
    backend: str | None
    _ranges: list[Range]  # of the inner knots, as they were last placed: one for all features or for each

    def set_options(
        self,
        grid_size: int,
        spline_order: int,
        grid_range: Sequence[float],
        base: str | None,
        backend: str | None,
        device: Any,
        dtype: torch.dtype | None,
    ) -> tuple[Callable[..., nn.Parameter], torch.dtype]:
        """Check and keep the options; return what makes a parameter of a shape, and its dtype."""
        self.grid_size = checks.integer("grid_size", grid_size, 1)
        self.spline_order = checks.spline_order(spline_order)
        self.grid_range = grid_range
        checks.base(base)
        dispatch.check_name("backend", backend)
        made = torch.get_default_dtype() if dtype is None else dtype
        checks.dtype(made)
        self.base = base
        self.backend = backend

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=made))

        return parameter, made

    def make_grid(self, in_features: int, device: Any, dtype: torch.dtype) -> None:
        """Register the buffer, its values still to be set. 16 bits tell no neighbouring knots apart."""
        knots_dtype = torch.float32 if dtype in checks.HALF_DTYPES else dtype
        knots = self.grid_size + 2 * self.spline_order + 1
        self.register_buffer("grid", torch.empty(in_features, knots, device=device, dtype=knots_dtype))

    @property
    def grid_range(self) -> Range:
        """Return what the inner knots of all features span, where they were last placed: (low, high).

        They are placed by the constructor, `grids.update_grid`, a state dict or a converter; other writes to
        `grid` are not seen. Setting it is for the next `reset_parameters`.
        """
        return _hull(self._ranges)

    @grid_range.setter
    def grid_range(self, value: Sequence[float]) -> None:
        checks.interval("grid_range", value)
        self._ranges = [(float(value[0]), float(value[1]))]

    @torch.no_grad()
    def place_grid(self, knots: Tensor) -> None:
        """Take over knots (in, G+2k+1), and keep their ranges for `reset_parameters`."""
        if knots.shape == self.grid.shape:
            self.grid.copy_(knots)
        else:
            self.grid = knots
        self.keep_ranges()

    def keep_ranges(self) -> None:
        """Keep the range of each feature's knots as they are now; one without a length gets that of all."""
        found = self._present_ranges()
        good = [one for one in found if one is not None]
        if good:
            ranges = [one or _hull(good) for one in found]
            self._ranges = ranges if len(set(ranges)) > 1 else ranges[:1]

    def _present_ranges(self) -> list[Range | None]:
        """Return the first and the last inner knot of each feature, None without a length; [] without values.

        Where they are those kept but for rounding they are these.
        """
        grid = self._own_grid()
        if not readable(grid):
            return []
        k, features = self.spline_order, grid.shape[0]
        kept = self._ranges * features if len(self._ranges) == 1 else self._ranges
        if len(kept) != features:  # of other features
            kept = [(math.nan, math.nan)] * features
        rounding = 8 * torch.finfo(grid.dtype).eps
        ends = grid.detach()[:, [k, -k - 1]].tolist()
        return [_range_of(low, high, old, rounding) for (low, high), old in zip(ends, kept, strict=True)]

    @torch.no_grad()
    def reset_grid(self) -> None:
        """Set uniform knots on the ranges where they were last placed, and k more cells on each side."""
        steps = torch.arange(-self.spline_order, self.grid_size + self.spline_order + 1, dtype=torch.float64)
        low, high = torch.tensor(self._ranges, dtype=torch.float64).unsqueeze(-1).unbind(1)
        grid = self._own_grid()
        grid.copy_((low + (high - low) / self.grid_size * steps).expand_as(grid))

    def _own_grid(self) -> Tensor:
        """Return the knots, or where a DTensor shards them over ranks, those of this rank's features."""
        own: Any = getattr(self.grid, "to_local", None)
        return self.grid if own is None else own()

    def _resize(self, grid_size: int) -> None:
        """Take another grid size: new knots and spline weights, their values still to be set."""
        weight, order = self.spline_weight, self.spline_order
        values = _empty_like(weight, grid_size + order)
        self.spline_weight = nn.Parameter(values, requires_grad=weight.requires_grad)
        self.grid = _empty_like(self.grid, grid_size + 2 * order + 1)
        self.grid_size = grid_size

    def _apply(self, fn, recurse=True):
        """Cast or move everything, but never round the knots to 16 bits."""
        knots = self.grid
        super()._apply(fn, recurse)
        if self.grid.dtype in checks.HALF_DTYPES:
            self.grid = knots.to(device=self.grid.device, dtype=torch.float32)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "grid" in state_dict:
            self.keep_ranges()

    def options_of_dispatch(self) -> dict[str, Any]:
        """Return what `explain` is told of any module with knots and a `spline_weight`."""
        return {
            "grid_size": self.grid_size,
            "spline_order": self.spline_order,
            "base": self.base,
            "device": self.spline_weight.device,
            "dtype": self.spline_weight.dtype,
            "backend": self.backend,
        }

    def options_repr(self, bias: bool | None) -> str:
        """Return the options as text, for `extra_repr`; grid_range is where the knots are now.

        bias: whether there is one; None where there could be none.
        """
        found = untraced(self._present_ranges) or list(self._ranges)
        good = [one for one in found if one is not None]
        low, high = _hull(good) if good else (math.nan, math.nan)
        low, high = float(f"{low:.6g}"), float(f"{high:.6g}")
        parts = [
            f"grid_size={self.grid_size}, spline_order={self.spline_order}",
            f"grid_range={low, high}{' over all features' if len(set(found)) > 1 else ''}",
            f"base={self.base!r}",
        ]
        if bias is not None:
            parts.append(f"bias={bias}")
        if self.backend is not None:
            parts.append(f"backend={self.backend!r}")
        return ", ".join(parts)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Load as torch does; after an error the layer is as it was."""
        with unchanged_by_errors(self, state_dict):
            return super().load_state_dict(state_dict, strict, assign)


@contextlib.contextmanager
def unchanged_by_errors(module: nn.Module, state_dict: Any) -> Iterator[None]:
    """Give every module in it its attributes, parameters, buffers and their values back after an error.

    Values are copied beforehand only where loading can fail: a state of the module's own keys and shapes
    needs no second copy of the model.
    """
    tables = ("_parameters", "_buffers", "_modules")
    kept = [(vars(m), dict(vars(m)), [dict(vars(m)[name]) for name in tables]) for m in module.modules()]
    tensors = [] if _surely_loads(module, state_dict) else [*module.parameters(), *module.buffers()]
    values = [(t, t.detach().clone()) for t in tensors if not nn.parameter.is_lazy(t)]
    without: Any = [(t, type(t)) for t in tensors if nn.parameter.is_lazy(t)]
    try:
        yield
    except BaseException:
        for now, before, contents in kept:
            now.clear()
            now.update(before)
            for name, content in zip(tables, contents, strict=True):
                now[name].clear()
                now[name].update(content)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for tensor, kind in without:  # may have been given values in place
            tensor.data, tensor.__class__ = tensor.data.new_empty(0), kind
        raise


def _surely_loads(module: nn.Module, state_dict: Any) -> bool:
    """Return whether nothing but copies of tensors to others of the same shapes lies ahead."""
    if any(m._load_state_dict_pre_hooks or m._load_state_dict_post_hooks for m in module.modules()):
        return False
    own = module.state_dict()
    if not isinstance(state_dict, Mapping) or own.keys() != state_dict.keys():
        return False
    return all(
        isinstance(new := state_dict[key], Tensor)
        and isinstance(value, Tensor)
        and not key.endswith("_extra_state")  # read, and refused, by the module it belongs to
        and not new.is_meta
        and not nn.parameter.is_lazy(value)
        and not nn.parameter.is_lazy(new)
        and new.shape == value.shape
        for key, value in own.items()
    )


def _empty_like(values: Tensor, columns: int) -> Tensor:
    """Return a tensor without values, of another size along dimension 1; a DTensor is sharded as it was."""
    shape = (values.shape[0], columns, *values.shape[2:])
    if not hasattr(values, "to_local"):
        return values.new_empty(shape)
    from torch.distributed import tensor

    assert isinstance(values, tensor.DTensor)
    layout: dict[str, Any] = {"device_mesh": values.device_mesh, "placements": values.placements}
    return tensor.empty(shape, dtype=values.dtype, **layout)


def _range_of(low: float, high: float, kept: Range, rounding: float) -> Range | None:
    """Return (low, high), or what is kept where that is the same but for rounding; None without a length."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return None
    allowed = rounding * max(abs(low), abs(high))
    same = abs(low - kept[0]) <= allowed and abs(high - kept[1]) <= allowed
    return kept if same else (low, high)


def _hull(ranges: list[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)
