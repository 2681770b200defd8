"""Parallel styles for torch's `parallelize_module`: the outputs, or the inputs, of a KANLinear over ranks.

DTensor knows our ops without this module (`_engine/sharding.py`); here is what turns a layer into DTensors.
"""

from typing import Any, ClassVar

import torch
from torch import nn

if not torch.distributed.is_available():
    raise ImportError("kan_kernels.distributed needs a torch that was built with torch.distributed")
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement

from .nn import KANLinear

__all__ = ["ColwiseKAN", "RowwiseKAN"]


class _Style(ParallelStyle):
    """A KANLinear over the ranks of a mesh: what both styles have in common."""

    along = ""  # "out" or "in", the features that are sharded
    shards: ClassVar[dict[str, int]]  # tensors of a layer -> their dimension that is
    reads: Placement  # what a layer computes on, and how x lies if nothing is said
    returns: Placement  # how the result is to lie if nothing is said

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__()
        given, returned = input_layouts or self.reads, output_layouts or self.returns
        for name, layout in (("input_layouts", given), ("output_layouts", returned)):
            if not isinstance(layout, (Replicate, Shard)):
                raise TypeError(f"{name}: got {layout!r}, expected Replicate() or a Shard")
        self.given, self.returned, self.use_local_output = given, returned, use_local_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self._check(module, device_mesh)
        module = distribute_module(module, device_mesh, self._shard, self._enter, self._leave)
        assert isinstance(module, KANLinear)
        module.keep_ranges()  # of this rank's features
        return module

    def _check(self, module: nn.Module, mesh: DeviceMesh) -> None:
        name = type(self).__name__
        if not isinstance(module, KANLinear):
            raise TypeError(
                f"{name}: got {type(module).__name__}, expected a KANLinear; name the layers of a model, "
                f'such as {{"layers.0": {name}()}}'
            )
        said = f"KANLinear({module.extra_repr()})"
        if mesh.ndim != 1:
            raise ValueError(
                f"{name}: got a mesh of {mesh.ndim} dimensions, expected one, such as mesh['model']"
            )
        if module.symbolic is not None:
            raise ValueError(
                f"{name}: {said} has symbolic edges, expected splines alone; shard it before them"
            )
        if not isinstance(module._parameters.get("spline_weight"), nn.Parameter):
            raise ValueError(f"{name}: spline_weight of {said} is parametrized, expected a plain parameter")
        features = module.in_features if self.along == "in" else module.out_features
        if features % mesh.size():
            raise ValueError(
                f"{name}: {said} has {features} {self.along}puts for {mesh.size()} ranks, expected a multiple"
            )

    def _shard(self, _: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None:
                    dim = self.shards.get(name)
                    placement = Replicate() if dim is None else Shard(dim)
                    made = distribute_tensor(
                        value.detach(), mesh, [placement], src_data_rank=self.src_data_rank
                    )
                    trained = isinstance(value, nn.Parameter)
                    table[name] = nn.Parameter(made, value.requires_grad) if trained else made  # type: ignore

    def _enter(self, module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
        x, *rest = inputs
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, [self.given], run_check=False)
        return x.redistribute(placements=[self.reads]), *rest

    def _leave(self, module: nn.Module, y: Any, mesh: DeviceMesh) -> Any:
        layout = self.returned
        if isinstance(layout, Shard) and y.shape[layout.dim] % mesh.size():
            raise ValueError(
                f"output_layouts: {layout} of a result of shape {tuple(y.shape)} for {mesh.size()} ranks, "
                "expected a multiple of these"
            )
        y = y.redistribute(placements=[layout])
        return y.to_local() if self.use_local_output else y


class ColwiseKAN(_Style):
    """A parallel style for a KANLinear: each rank has a part of its outputs.

    spline_weight, base_weight and bias are sharded along the outputs, knots are on every rank. Forward sends
    nothing where x is on every rank; backward adds up the gradients of x over the ranks.

    Args:
        input_layouts: how x lies on the ranks: Replicate(), or Shard(d), as in sequence parallel, which is
            gathered.
        output_layouts: how the result is to lie: Shard(-1), what a `RowwiseKAN` reads, or another layout.
        use_local_output: whether the result is this rank's tensor rather than a DTensor.

    Raises:
        TypeError, ValueError: in `parallelize_module`, on a layer that is no KANLinear, has symbolic edges,
            or outputs that the ranks do not divide.

    Example:
        >>> ColwiseKAN(input_layouts=Shard(1)).along
        'out'
    """

    along = "out"
    shards: ClassVar = {"spline_weight": 2, "base_weight": 1, "bias": 0, "edge_mask": 1}
    reads, returns = Replicate(), Shard(-1)


class RowwiseKAN(_Style):
    """A parallel style for a KANLinear: each rank has a part of its inputs, and a partial sum of each output.

    spline_weight, base_weight and the knots are sharded along the inputs, the bias is on every rank. Forward
    adds up the results over the ranks; backward sends nothing. `grid_range` is that of a rank's own features.

    Args:
        input_layouts: how x lies on the ranks: Shard(-1), what a `ColwiseKAN` returns, or another layout.
        output_layouts: how the result is to lie: Replicate(), or Shard(d), as in sequence parallel.
        use_local_output: whether the result is this rank's tensor rather than a DTensor.

    Raises:
        TypeError, ValueError: in `parallelize_module`, on a layer that is no KANLinear, has symbolic edges,
            or inputs that the ranks do not divide.

    Example:
        >>> RowwiseKAN(output_layouts=Shard(1)).along
        'in'
    """

    along = "in"
    shards: ClassVar = {"spline_weight": 0, "base_weight": 0, "grid": 0, "edge_mask": 0}
    reads, returns = Shard(-1), Replicate()
