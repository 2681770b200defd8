"""What is known of a knot tensor: whether every feature's knots are uniform, and where its cells are.

Values are read once for each state of a tensor, when its kernels first see it, and never again until it is
written: this is the only host synchronisation of the backend. It does not happen while a CUDA graph is
captured: a grid not seen before then runs on the exact kernels, which ask for nothing.
"""

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

TOLERANCE = 2.0**-14
"""Of a cell: how far a knot may be from its uniform place. It moves a basis value by less than 2^-14: an
eighth of what rounding a TF32 operand may, and 1/32 of a bfloat16 one."""

# storage and layout -> (the storage, the tensor's version then, its table)
_known: dict[tuple, tuple[StorageWeakRef, int, Tensor | None]] = {}
_LIMIT = 1024


def uniform_table(grid: Tensor, spline_order: int) -> Tensor | None:
    """(2, in) float32: scale and offset of each feature, x * scale + offset = (cells from knot K to x) / 4.

    None where a feature's knots are not uniform, or where nobody may look.
    grid: (in, G+2k+1) float32.
    """
    if grid.is_inference():  # does not count its writes
        return None
    storage = grid.untyped_storage()
    key = (storage._cdata, grid.storage_offset(), grid.shape, grid.stride(), spline_order)
    entry = _known.get(key)
    if entry is not None and not entry[0].expired() and entry[1] == grid._version:
        return entry[2]
    if grid.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    if len(_known) >= _LIMIT:
        _known.clear()
    table = _look(grid, spline_order)
    _known[key] = (StorageWeakRef(storage), grid._version, table)
    return table


def _look(grid: Tensor, spline_order: int) -> Tensor | None:
    with torch.no_grad():
        knots = grid.double()
        first, cells = knots[:, :1], knots.shape[1] - 1
        step = (knots[:, -1:] - first) / cells
        place = torch.arange(cells + 1, device=grid.device, dtype=torch.float64)
        uniform = ((knots - first - step * place).abs() <= TOLERANCE * step).all() & (step > 0).all()
        if not bool(uniform):
            return None
        # a window starts K rows before its cell
        return torch.cat([0.25 / step, -0.25 * (first / step + spline_order)], 1).t().float().contiguous()
