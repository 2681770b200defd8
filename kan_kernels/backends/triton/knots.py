"""Whether every feature's knots are uniform, which chooses the kernel.

The choice needs the values of the knots on the host. They are read once for each state of a tensor, when its
kernels first see it, and again after it was written: the only host synchronisation of this backend. It does
not happen while a CUDA graph is captured: a grid not seen before then runs on the exact kernels, with a
warning (`graphs.warm_up` is for that).

What is kept is one bool. The numbers come from the knots at every call (table_kernel.py), where knots
that are not uniform after all, because they were written where torch counts no writes (`grid.data`, a
replayed graph, a collective), turn every result into NaN: never into a number that is wrong.
"""

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..._core import graphs

TOLERANCE = 2.0**-14
"""Of a cell: how far a knot may be from its uniform place. It moves a basis value by less than 2^-14: an
eighth of what rounding a TF32 operand may, and 1/32 of a bfloat16 one."""

FARTHEST = (
    1024.0  # cells from 0 to the knots: beyond, x * scale + offset in float32 no longer tells where x is
)

# storage and layout -> (the storage, the tensor's version then, whether its knots are uniform)
_known: dict[tuple, tuple[StorageWeakRef, int, bool]] = {}
_LIMIT = 1024


def are_uniform(grid: Tensor) -> bool:
    """Return whether all features' knots are uniform; False where nobody may look. grid: (in, G+2k+1)."""
    if grid.is_inference():  # does not count its writes
        return False
    storage = grid.untyped_storage()
    key = (storage._cdata, grid.storage_offset(), grid.shape, grid.stride())
    entry = _known.get(key)
    if entry is not None and not entry[0].expired() and entry[1] == grid._version:
        return entry[2]
    if grid.is_cuda and graphs.captured_without("a look at its knots, for which the fast kernels wait"):
        return False
    if len(_known) >= _LIMIT:
        _known.clear()
    uniform = _look(grid)
    _known[key] = (StorageWeakRef(storage), grid._version, uniform)
    return uniform


def _look(grid: Tensor) -> bool:
    with torch.no_grad():
        knots = grid.double()
        first, cells = knots[:, :1], knots.shape[1] - 1
        step = (knots[:, -1:] - first) / cells
        place = torch.arange(cells + 1, device=grid.device, dtype=torch.float64)
        near = (knots - first - step * place).abs() <= TOLERANCE * step
        return bool((near & (step > 0) & (knots.abs() <= FARTHEST * step)).all())
