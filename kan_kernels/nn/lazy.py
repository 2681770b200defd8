"""Layers that learn the number of their inputs from the first x, as those of torch.nn do."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from .._core import checks
from .conv import KANConv, KANConv1d, KANConv2d, KANConv3d
from .linear import KANLinear


class _Lazy(LazyModuleMixin):
    """A layer whose first argument is not given yet.

    It is made with a stand-in for it. What has its size is uninitialised until the first x, or a state dict
    that holds values, says what it is; at the first x the module becomes a plain one.
    """

    FIRST: str  # the argument
    TENSORS = ("spline_weight", "base_weight")  # an uninitialised buffer could not be copied: the grid stays

    def _forget(self: Any) -> None:
        """Keep the shapes of the tensors without their first dimension, and nothing else of them."""
        found = {name: getattr(self, name) for name in self.TENSORS if getattr(self, name) is not None}
        self._tails = {name: tuple(old.shape[1:]) for name, old in found.items()}
        parameter: Any = nn.UninitializedParameter
        for name, old in found.items():
            setattr(self, name, parameter(device=old.device, dtype=old.dtype))
        setattr(self, self.FIRST, 0)

    def _learn(self: Any, count: int) -> None:
        for name, tail in self.__dict__.pop("_tails").items():
            getattr(self, name).materialize((count, *tail))
        self.grid = self.grid.new_empty(count, self.grid.shape[1])
        setattr(self, self.FIRST, count)
        self.reset_parameters()

    def reset_parameters(self: Any, generator: torch.Generator | None = None) -> None:
        """Initialise as the plain layer does, once there is something to initialise."""
        if "_tails" not in self.__dict__:
            super().reset_parameters(generator)  # type: ignore[misc]

    def initialize_parameters(self: Any, x: Tensor, *_: Any) -> None:
        """Take the number of inputs from x. Raise TypeError or ValueError if x cannot have been meant."""
        if "_tails" in self.__dict__:
            checks.tensor("x", x)
            with torch.no_grad():
                self._learn(self._count(x))

    def _load_from_state_dict(self: Any, state_dict: Any, prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "spline_weight")
        if "_tails" in self.__dict__ and isinstance(weight, Tensor):
            if nn.parameter.is_lazy(weight):  # it has not met an x either
                nn.Module._load_from_state_dict(self, state_dict, prefix, *args)
                return
            if weight.dim() > 1 and weight.shape[0]:
                self._learn(weight.shape[0])
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


class LazyKANLinear(_Lazy, KANLinear):
    """A KANLinear whose in_features is that of the first x, after which it is a KANLinear.

    Args:
        out_features, grid_size, spline_order, options: as for KANLinear.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> layer = LazyKANLinear(3)
        >>> layer(torch.zeros(4, 2)).shape, layer
        (torch.Size([4, 3]), KANLinear(2, 3, ...))
    """

    cls_to_become = KANLinear  # type: ignore[assignment]
    FIRST = "in_features"

    def __init__(self, out_features: int, grid_size: int = 5, spline_order: int = 3, **options: Any) -> None:
        super().__init__(1, out_features, grid_size, spline_order, **options)
        self._forget()

    def _count(self, x: Tensor) -> int:
        if x.dim() == 0 or x.shape[-1] == 0:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (..., in) with in >= 1")
        return x.shape[-1]


class _LazyConv(_Lazy):
    FIRST = "in_channels"
    DIMS: int
    groups: int

    def __init__(self, out_channels: int, kernel_size: Any, *args: Any, **options: Any) -> None:
        given = inspect.signature(KANConv.__init__).bind(self, 1, out_channels, kernel_size, *args, **options)
        groups = given.arguments.get("groups", 1)
        stand_in = groups if type(groups) is int and groups > 0 else 1
        super().__init__(stand_in, out_channels, kernel_size, *args, **options)  # type: ignore[misc]
        self._forget()

    def _count(self, x: Tensor) -> int:
        expected = f"(N, C, *size) or (C, *size), {self.DIMS} sizes and C a multiple of groups={self.groups}"
        good = x.dim() in (self.DIMS + 1, self.DIMS + 2) and x.shape[-self.DIMS - 1] > 0
        if not good or x.shape[-self.DIMS - 1] % self.groups:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected {expected}")
        return x.shape[-self.DIMS - 1]


_DOC = """A KANConv{dims}d whose in_channels is that of the first x, after which it is a KANConv{dims}d.

    Args:
        out_channels, kernel_size, args, options: as for KANConv{dims}d, behind its in_channels.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> LazyKANConv{dims}d(4, 3)(torch.zeros(1, 2, *{dims} * [8])).shape[1]
        4
    """


class LazyKANConv1d(_LazyConv, KANConv1d):
    __doc__ = _DOC.format(dims=1)
    cls_to_become = KANConv1d  # type: ignore[assignment]


class LazyKANConv2d(_LazyConv, KANConv2d):
    __doc__ = _DOC.format(dims=2)
    cls_to_become = KANConv2d  # type: ignore[assignment]


class LazyKANConv3d(_LazyConv, KANConv3d):
    __doc__ = _DOC.format(dims=3)
    cls_to_become = KANConv3d  # type: ignore[assignment]
