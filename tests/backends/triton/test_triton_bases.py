"""Bases that are not local on the Triton kernels, in Triton's interpreter (`make interpret`)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import cycle, product
from unittest import mock

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import bases
from basis_cases import LAYOUTS, NAMES, as_function, case, laid_out, tensors
from cases import HALF, OPS, Case, build, sparse
from harness import FUSED, INTERPRETED, bits, check_op, run_op
from interpreted import check_tiles_of_a_gpu, launches, tf32
from kan_kernels import functional as F
from kan_kernels._core.bases import BASES

pytestmark = pytest.mark.skipif(
    not (INTERPRETED and "triton" in FUSED),
    reason="needs TRITON_INTERPRET=1 and triton in KAN_TEST_BACKENDS: `make interpret` runs it",
)
if INTERPRETED:
    from kan_kernels.backends.triton import tiling

F32, F64 = torch.float32, torch.float64
AROUND = ("rbf", "chebyshev", "orthogonal")  # waves are new in their functions alone, and have no state
DENSE = {"forward": {"dense_forward"}, "input": {"dense_input"}, "weight": {"dense_backward"}}
GATHER = {"forward": {"gather_forward"}, "input": {"gather_input"}, "weight": {"gather_backward"}}


def _table() -> list[Case]:
    cases = []
    for basis in AROUND:
        # functions in a tile of 4, of 8, in several groups and in a loop over them; every order of derivative
        for turn, (functions, m) in enumerate(
            ((3, 0), (8, 1), (13, 2), (17, 1), (5, 0), (12, 1), (1, 2), (9, 3))
        ):
            facts = {"points": ("inside", "knots")[turn % 2], "knots": ("uniform", "adaptive")[turn // 2 % 2]}
            facts |= {"derivative": m, "base": ("silu", None, "identity")[turn % 3]}
            cases.append(case(basis, functions, 19, 5, 20, side=turn % 2 == 0, **facts))
            if functions < 17:
                cases.append(
                    case(basis, functions, 19, 3, 18, dtype=(torch.bfloat16, F64)[turn % 2], **facts)
                )
        # x of every kind, wide and narrow
        for turn, (points, width) in enumerate(product(("mixed", "nan", "inf", "outside"), (20, 5))):
            dtype = (F32, torch.bfloat16, torch.float16)[turn % 3]
            x_dtype = F32 if turn % 2 and dtype in HALF else None
            base = (None, "silu", "identity")[turn // 2 % 3]
            facts = {"points": points, "dtype": dtype, "x_dtype": x_dtype, "side": turn % 4 == 1}
            cases.append(case(basis, 6, 13, 4, width, base=base, **facts))
        cases.append(case(basis, 6, 13, 4, 20, derivative=2, dtype=torch.float16, points="inside", base=None))
        cases.append(case(basis, 7, 9, 3, 20, derivative=7, points="inside"))
        cases.append(case(basis, 7, 9, 3, 4, derivative=9, points="inside", dtype=F64))
        for layout in ("transposed", "sliced", "expanded", "column"):
            cases.append(case(basis, 3, 21, 6, 20, side=True, layout=layout, points="inside"))
        for sizes in ((0, 3, 20), (1, 1, 1), (2, 19, 40)):
            cases.append(case(basis, 4, *sizes, points="inside"))
    # waves: every quarter turn, odd numbers of frequencies, so that groups hold both, each dtype and kernel
    for turn, (functions, m) in enumerate(((6, 0), (14, 1), (40, 2), (10, 3))):
        facts = {"points": ("outside", "inside")[turn % 2], "derivative": m, "side": turn % 2 == 0}
        cases.append(case("fourier", functions, 9, 2, 20, base=("silu", None)[turn % 2], **facts))
        if functions < 40:
            cases.append(case("fourier", functions, 9, 2, 5, dtype=(F64, torch.bfloat16)[turn % 2], **facts))
    for points, dtype in (("nan", torch.bfloat16), ("inf", F32), ("mixed", torch.float16)):
        cases.append(case("fourier", 6, 9, 3, 20, points=points, dtype=dtype, base=None))
    return cases


@pytest.mark.parametrize("c", sparse(_table()), ids=lambda c: c.name)
def test_op(c: Case) -> None:
    """Every op on every case, outputs poisoned before the run."""
    for op in OPS:
        check_op("triton", op, c, build(c))


@pytest.mark.long
@pytest.mark.parametrize("basis", AROUND)
def test_many_functions(basis: str) -> None:
    """Any number is still a product of matrices: a basis without cells gains nothing from fetched rows."""
    for op, functions in (("forward", 256), ("input", 70), ("weight", 40)):
        c = case(basis, functions, 5, 2, 20, points="inside")
        with launches() as seen:
            check_op("triton", op, c, build(c))
        assert DENSE[op] <= {name for name, _, _ in seen} <= DENSE[op] | {"base_gradient"}


@pytest.mark.long
def test_large_angles() -> None:
    """float32 waves far out are those of float64, where g x would be rounded by more than a turn."""
    inputs = build(case("fourier", 24, 4, 1, 20, base=None, bias=False))
    inputs.x = torch.tensor([[3.1], [1.2345e3], [9.8765e5], [-3.21e7]])
    (got,), (want,) = run_op("triton", "forward", inputs), run_op("reference", "forward", inputs.to(F64))
    errors = (got.double() - want).abs().amax(1) / inputs.spline_weight.abs().sum()
    allowed = 2e-7 + 12 * 2 * torch.pi * 2.0**-48 * inputs.x[:, 0].abs()
    assert (errors < allowed).all(), errors


@pytest.mark.long
@pytest.mark.parametrize("basis", AROUND)
def test_tf32(basis: str) -> None:
    """With TF32 allowed, operands of 11 bits."""
    c = case(basis, 12, 17, 9, 33, points="inside", side=True)
    for op in OPS:
        with tf32(), launches() as seen:
            check_op("triton", op, c, build(c))
        assert {constants["PRECISION"] for _, constants, _ in seen} == {"tf32"}


@pytest.mark.long
@pytest.mark.parametrize("basis", AROUND)
def test_which_kernels(basis: str) -> None:
    """Row by row: float64, narrow layers, float16 operands that could overflow. All others are dense."""
    for dtype, width, m, wanted in (
        (F32, 20, 1, DENSE),
        (torch.float16, 20, 0, DENSE),
        (torch.bfloat16, 20, 2, DENSE),
        (torch.float16, 20, 2, {**GATHER, "input": DENSE["input"]}),
        (F32, 4, 0, GATHER),
        (F64, 20, 0, GATHER),
    ):
        inputs = build(case(basis, 5, 6, 2, width, dtype=dtype, derivative=m, points="inside", base=None))
        for op in ("forward", "input", "weight"):
            with launches() as seen:
                run_op("triton", op, inputs)
            assert {name for name, _, _ in seen} == wanted[op], (op, dtype, width)
            assert seen[0][1]["BASIS"] == bases.CODES[basis]
    c = case(basis, 8, 20, 20, 40, dtype=torch.bfloat16, base=None, points="inside")
    with launches() as seen:
        check_op("triton", "backward", c, build(c))
    assert [(name, constants["ONE_PASS"]) for name, constants, _ in seen] == [("dense_backward", True)]


@pytest.mark.long
@pytest.mark.parametrize("basis", AROUND)
def test_tiles_of_a_gpu(basis: str) -> None:
    """The tiles that GPUs run, in place of the interpreter's small ones, give the same results."""
    for c in (
        case(basis, 9, 70, 19, 130, dtype=torch.bfloat16, points="inside"),
        case(basis, 8, 65, 17, 40, side=True, points="inside"),
        case(basis, 40, 65, 2, 5, points="inside"),
    ):
        check_tiles_of_a_gpu(c)


@pytest.mark.long
def test_rows_past_the_last_polynomial() -> None:
    """Far from [-1, 1] T_5 is finite and T_7 is not: the spare rows of a tile must not meet zeros."""
    inputs = build(case("chebyshev", 6, 5, 3, 20, points="inside", base=None))
    inputs.x = inputs.x * 1e6
    for op in ("forward", "input"):
        for got, want in zip(run_op("triton", op, inputs), run_op("reference", op, inputs), strict=True):
            assert want.isfinite().all()
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.long
def test_rows_past_the_last_wave() -> None:
    """26^32 overflows where 13^32 does not: the same of the spare rows of a tile."""
    inputs = build(case("fourier", 26, 5, 3, 20, points="inside", derivative=32, base=None))
    for got, want in zip(
        run_op("triton", "forward", inputs), run_op("reference", "forward", inputs), strict=True
    ):
        assert want.isfinite().all()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.long
@pytest.mark.parametrize("basis", AROUND)
def test_sums_in_parts(basis: str) -> None:
    """A long batch is summed in parts."""
    c = case(basis, 4, 800, 1, 20, points="inside", base=None)
    with launches() as seen:
        check_op("triton", "weight", c, build(c))
    assert [name for name, _, _ in seen] == ["dense_backward", "sum_parts"]


@cache
def _contiguous(
    basis: str, dtype: torch.dtype, sizes: tuple[int, ...]
) -> dict[str, tuple[torch.Tensor, ...]]:
    inputs = build(case(basis, *sizes, points="inside", dtype=dtype))
    return {op: tuple(run_op("triton", op, inputs)) for op in OPS}


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("basis", AROUND)
def test_weights_as_they_lie(basis: str, layout: str) -> None:
    """Weights that keep the functions of an edge together: the same bits, gradients of that layout."""
    for dtype, sizes in ((F32, (5, 9, 3, 20)), (F64, (5, 9, 3, 4)), (torch.bfloat16, (5, 9, 3, 20))):
        inputs = build(case(basis, *sizes, points="inside", dtype=dtype))
        plain = _contiguous(basis, dtype, sizes)
        inputs.spline_weight = weight = laid_out(inputs.spline_weight, layout)
        got = {op: run_op("triton", op, inputs) for op in OPS}
        for op in OPS:
            for a, b in zip(got[op], plain[op], strict=True):
                assert torch.equal(bits(a.contiguous()), bits(b)), op
        gradient = got["backward"][1]
        alone = torch.ops.kan_kernels_triton.kan_linear_grad_weight(*inputs.args("weight"), weight)[0]
        assert torch.equal(bits(alone.contiguous()), bits(plain["weight"][0]))
        wanted = gradient.contiguous().stride() if dtype == torch.bfloat16 else weight.stride()
        assert gradient.stride() == alone.stride() == wanted


@pytest.mark.long
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    """torch's own checks: schema, fakes (shapes and strides), autograd, tracing."""
    for basis, layout in zip(AROUND, cycle(LAYOUTS), strict=False):
        inputs = build(case(basis, 5, 4, 2, 3, points="inside", dtype=F64))
        inputs.spline_weight = laid_out(inputs.spline_weight, layout)
        args = [
            a.requires_grad_() if isinstance(a, torch.Tensor) and a is not inputs.grid else a
            for a in inputs.args(op)
        ]
        args += [inputs.spline_weight] if op == "weight" else []
        torch.library.opcheck(getattr(torch.ops.kan_kernels_triton, OPS[op]), tuple(args))


@pytest.mark.long
@pytest.mark.parametrize("basis", AROUND)
def test_gradients_of_first_and_second_order(basis: str) -> None:
    """gradcheck and gradgradcheck in float64, along random directions. The base knows no basis: once."""
    base = "silu" if basis == "rbf" else None
    function, leaves = as_function(tensors(basis, 4, base), basis=basis, base=base, backend="triton")
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.long
@pytest.mark.parametrize("basis", NAMES)
def test_nested_derivatives(basis: str) -> None:
    """d^m y / dx^m by nested autograd is the oracle's m-th derivative, past a polynomial's degree as well."""
    t = tensors(basis, 4, None)
    y = F.basis_linear(**{**t, "bias": None}, basis=basis, backend="triton")[:, 1].sum()
    grid = torch.empty(2, 0, dtype=F64) if t["grid"] is None else t["grid"]
    for m in range(1, 6):
        (d,) = torch.autograd.grad(y, t["x"], create_graph=True)
        phi = bases.values(bases.CODES[basis], t["x"].detach(), grid, 4, m)
        want = torch.einsum("bir,ir->bi", phi, t["weight"][..., 1].detach())
        torch.testing.assert_close(d, want, rtol=1e-10, atol=1e-10)
        y = d.sum()


@pytest.mark.long
def test_every_tile_gives_the_same_numbers() -> None:
    """Tuning changes the speed of a result; tiles of a basis are remembered beside those of splines."""
    c = case("rbf", 8, 70, 9, 130, dtype=torch.bfloat16, points="inside")
    keys = set()
    results = []
    for choice in range(3):

        def pick(name, device, shapes, constants, tiles, run, choice=choice):  # type: ignore[no-untyped-def]
            with mock.patch.object(torch.cuda, "get_device_name", lambda device: "a GPU"):
                keys.add(tiling.tuning._key(name, device, shapes, constants))
                keys.add(tiling.tuning._key(name, device, replace(shapes, basis=0), constants))
            return tiles[min(choice, len(tiles) - 1)]

        with (
            mock.patch.object(tiling, "interpreted", lambda kernel: False),
            mock.patch.object(tiling.tuning, "best", pick),
        ):
            results.append(run_op("triton", "forward", build(c))[0])
    assert len(keys) == 2
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=0.01, atol=0.01)


def test_ops_refuse_what_they_do_not_know() -> None:
    """An op called directly checks the basis, its grid and order, naming the argument."""
    inputs = build(case("rbf", 5))
    args = list(inputs.args("weight"))
    call = torch.ops.kan_kernels_triton.kan_linear_grad_weight
    call(*args)
    for functions, order, basis, message in (
        (5, 0, len(BASES), f"basis: got {len(BASES)}"),
        (5, 0, -1, "basis: got -1"),
        (5, 1, 1, "order: got 1"),
        (257, 0, 2, "functions: got 257"),
        (5, 0, 2, "grid: got shape"),
        (0, 0, 1, "functions: got 0"),
        (3, 0, 3, "functions: got 3, expected an even number"),
        (1026, 0, 3, "functions: got 1026"),
        (5, 0, 4, "grid: got shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call(*args[:4], functions, order, *args[6:-1], basis)
    for grid in (inputs.grid[:, :1], torch.ones(inputs.grid.shape[0], 258)):
        with pytest.raises(ValueError, match="grid: got shape"):
            call(*args[:3], grid, *args[4:])
    with pytest.raises(ValueError, match="like: got shape"):
        call(*args, inputs.spline_weight[:, :-1])
    with pytest.raises(TypeError, match=r"like: got torch\.float64"):
        call(*args, inputs.spline_weight.double())
