"""What the CUDA backend says where it cannot run, which path a shape takes, and what is in the library."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kan_kernels import cost_model, cuda_support, dispatch, explain, ops

needs_cuda_build = pytest.mark.skipif(
    "cuda" not in ops.DEVICES, reason="the library was built without CUDA kernels: there was no nvcc"
)


@pytest.mark.parametrize(
    "capability,compiled,runs",
    [
        ((9, 0), "80-real 80-virtual", True),
        ((9, 0), "80-real", False),
        ((8, 9), "86-real", True),
        ((8, 0), "86-real 86-virtual", False),
        ((10, 0), "90a-real 90a-virtual", False),
        ((9, 0), "90a-real", True),
        ((12, 1), "90-real 120-real", True),
    ],
)
def test_architectures(capability: tuple[int, int], compiled: str, runs: bool) -> None:
    """Machine code runs on its own family from its own number on, PTX on everything newer."""
    reason = cuda_support.why_not_on(capability, compiled)
    assert (reason is None) is runs
    if reason is not None:
        assert f"TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}" in reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_reason_without_gpu() -> None:
    """explain() and the error give the same reason, and it names a remedy."""
    reason = cuda_support.why_not()
    assert reason is not None and any(word in reason for word in ("install", "rebuild", "driver"))
    case = dispatch.Case("cuda", torch.float32, torch.float32, 8, 8, 5, 3)
    with pytest.raises(RuntimeError) as error:
        dispatch.choose(case, "native")
    assert reason in str(error.value)
    assert reason in explain((8, 8), device="cuda")


@needs_cuda_build
def test_tf32_follows_torch() -> None:
    """The kernels ask what torch.matmul asks."""
    before = torch.get_float32_matmul_precision()
    try:
        for precision, allowed in (("highest", False), ("high", True), ("highest", False)):
            torch.set_float32_matmul_precision(precision)
            assert torch.ops.kan_kernels.cuda_tf32_allowed() is allowed
    finally:
        torch.set_float32_matmul_precision(before)


@needs_cuda_build
@pytest.mark.parametrize(
    "shape,dtype,batch,path",
    [
        ((512, 512, 5), torch.bfloat16, 8192, "dense"),
        ((64, 64, 5), torch.float32, 1000, "dense"),
        ((64, 64, 20), torch.float32, 1000, "gather"),  # strict: splitting the operands costs more
        ((64, 64, 20), torch.bfloat16, 1000, "dense"),
        ((512, 512, 128), torch.float32, 8192, "gather"),  # long grid
        ((2, 5, 5), torch.float32, 1000, "gather"),  # narrow
        ((64, 64, 5), torch.float64, 1000, "gather"),
        ((64, 64, 85), torch.float32, 1000, "gather"),  # strict, and nearly too long
    ],
)
def test_path(shape: tuple[int, int, int], dtype: torch.dtype, batch: int, path: str) -> None:
    """The cost model's choices; the text has both costs."""
    case = dispatch.Case("cuda", dtype, dtype, *shape, 3)
    text = cost_model.native_path(case, 8, batch)
    assert text.startswith(f"{path} path") and "cycles an edge" in text
    assert min((cost, name) for name, cost in cost_model.native_paths(case, 8, batch).items())[1] == path


@needs_cuda_build
@pytest.mark.parametrize(
    "changes,path,words",
    [
        ({"dtype": torch.bfloat16}, "matrix units", ""),
        ({"dtype": torch.float32}, "multiply-adds", "not rounded to TF32"),
        ({"dtype": torch.float64}, "multiply-adds", "float64"),
        ({"dtype": torch.float16, "derivative": 1}, "matrix units", ""),
        ({"dtype": torch.float16, "derivative": 2}, "multiply-adds", "too large for float16"),
    ],
)
@pytest.mark.parametrize("basis,size,order", [("rbf", 8, 0), ("chebyshev", 1, 7)])
def test_path_of_a_global_basis(
    basis: str, size: int, order: int, changes: dict[str, Any], path: str, words: str
) -> None:
    """Matrix units wherever they can, with the reason where not; wide layers cost less an edge."""
    facts: dict[str, Any] = {"basis": basis, "grid_size": size, "spline_order": order, **changes}
    dtype = facts.pop("dtype")
    cases = [dispatch.Case("cuda", dtype, dtype, 64, out, **facts) for out in (5, 64, 512)]
    text = cost_model.native_path(cases[0], 8)
    assert text.startswith(f"{path} path; cycles an edge:") and words in text
    costs = [cost_model.native_paths(case, 8) for case in cases]
    assert all(min((cost, name) for name, cost in each.items())[1] == path for each in costs)
    assert costs[0][path] > costs[1][path] >= costs[2][path]
