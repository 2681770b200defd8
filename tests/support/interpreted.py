"""What tests of the interpreted Triton kernels share: launches seen, TF32, the tiles that GPUs run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch

from cases import OPS, Case, build
from harness import INTERPRETED, check_op

if INTERPRETED:
    from kan_kernels.backends.triton import tiling


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """torch's setting that lets float32 products run in TF32."""
    was = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(was)


@contextlib.contextmanager
def launches() -> Iterator[list[tuple[str, dict, dict]]]:
    """(kernel, constants, tile) of every launch inside, but of the tables of knots; they still happen."""
    seen: list[tuple[str, dict, dict]] = []
    real = tiling.launch

    def launch_and_note(kernel, device, blocks, arguments, constants, tile) -> None:  # type: ignore[no-untyped-def]
        if kernel.fn.__name__ != "uniform_table":
            seen.append((kernel.fn.__name__, constants, tile))
        real(kernel, device, blocks, arguments, constants, tile)

    with mock.patch.object(tiling, "launch", launch_and_note):
        yield seen


def check_tiles_of_a_gpu(case: Case) -> None:
    """The ops in the tiles that GPUs run; `input` and `weight` not where a wide `backward` is both."""
    wide = not case.side and case.out_features > 64
    for op in ("forward", "backward") if wide else OPS:
        with mock.patch.object(tiling, "interpreted", lambda kernel: False), launches() as seen:
            check_op("triton", op, case, build(case))
    if wide:
        assert [name for name, _, _ in seen] == ["dense_input", "dense_backward", "base_gradient"]
