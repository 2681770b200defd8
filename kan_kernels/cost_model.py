"""Which of its paths the CUDA backend takes for a layer, and why: the cost model of csrc/cuda/cost.cu."""

import torch

from . import ops
from .contract import BASE_CODES

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def cuda_path(case, batch: int) -> str:
    """The path of a `dispatch.Case` ("dense" or "gather"), what both would cost and what rules one out.

    The costs are cycles of one multiprocessor for each (row, input, output): counted, not measured.

    Raises:
        RuntimeError: the library was built without CUDA kernels.
    """
    if "cuda" not in ops.DEVICES:
        raise RuntimeError("this library was built without CUDA kernels: KAN_KERNELS_CUDA=1 builds them")
    return torch.ops.kan_kernels.cuda_path(
        batch, case.in_features, case.out_features, case.grid_size, case.spline_order, BASE_CODES[case.base],
        _DTYPES[case.dtype], case.derivative,
    )  # fmt: skip
