"""The Triton kernels in Triton's interpreter, beyond the shared case table: what only this backend has.

Run in a process of its own: TRITON_INTERPRET=1 KAN_TEST_BACKENDS=reference,triton pytest with this file
(`make interpret`). What runs is the very source that is compiled for GPUs.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from unittest import mock

import pytest
import torch

from cases import OPS, Case, build, sparse
from harness import FUSED, INTERPRETED, check_op, run_op
from interpreted import check_tiles_of_a_gpu, launches, tf32
from kan_kernels import KAN, functional, use_backend

pytestmark = pytest.mark.skipif(
    not (INTERPRETED and "triton" in FUSED),
    reason="needs TRITON_INTERPRET=1 and triton in KAN_TEST_BACKENDS: `make interpret` runs it",
)
if INTERPRETED:
    from kan_kernels.backends.triton import launch, tiling


REDUCED = [
    Case(40, 9, 33, 5, order, derivative, knots, points, side=turn % 2 == 1, base=("silu", None)[turn % 2])
    for turn, (order, derivative, knots, points) in enumerate(
        (k, m, knots, points)
        for k in (1, 2, 3)
        for m in range(k)
        for knots, points in (("uniform", "mixed"), ("ranges", "knots"), ("uniform", "nan"))
    )
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", sparse(REDUCED), ids=lambda c: c.name)
def test_tf32_takes_fixed_polynomials(op: str, case: Case) -> None:
    """With TF32 allowed, uniform knots of a continuous function run on fixed polynomials, accurately."""
    with tf32(), launches() as seen:
        check_op("triton", op, case, build(case))
    order = case.derivative + (op == "backward")
    dense = [
        constants for name, constants, _ in seen if name in ("dense_forward", "dense_backward", "dense_input")
    ]
    assert dense
    for constants in dense:
        assert constants["PRECISION"] == "tf32"
        assert (constants["POLY"] is not None) == (constants["M"] < case.order), (constants, order)


def test_strict_float32_compares_with_the_knots() -> None:
    """Without that setting nothing but the knots says where a cell ends, and products are strict."""
    with launches() as seen:
        run_op("triton", "forward", build(Case(20, 4, 40)))
    ((_, constants, _),) = seen
    assert constants["POLY"] is None and constants["PRECISION"] == "tf32x3"


@pytest.mark.long
@pytest.mark.parametrize("order", (0, 1, 2, 3, 4))
def test_a_jump_is_found_by_comparing(order: int) -> None:
    """Where the M-th derivative jumps at the knots (M >= k), cells are exact in every dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(64, 3, 40, 5, order, order, "uniform", "knots", dtype, x_dtype=torch.float32)
        with tf32(), launches() as seen:
            check_op("triton", "forward", case, build(case))
        assert seen[0][1]["POLY"] is None


@pytest.mark.long
def test_tiles_of_a_gpu() -> None:
    """The tiles that GPUs run, in place of the interpreter's small ones, give the same results."""
    for case in (
        Case(70, 19, 130, dtype=torch.bfloat16),
        Case(70, 17, 70, 9, dtype=torch.float16, knots="adaptive"),
        Case(65, 17, 40, 6, 5, knots="adaptive", side=True),
        Case(65, 17, 5),
    ):
        check_tiles_of_a_gpu(case)


@pytest.mark.long
def test_every_tile_gives_the_same_bits() -> None:
    """Tuning changes the speed of a result, not the order in which its terms are added."""
    case = Case(70, 9, 130, dtype=torch.bfloat16)
    for op in OPS:
        results = []
        for choice in range(4):

            def pick(name, device, shapes, constants, tiles, run, choice=choice):  # type: ignore[no-untyped-def]
                return tiles[min(choice, len(tiles) - 1)]

            with (
                mock.patch.object(tiling, "interpreted", lambda kernel: False),
                mock.patch.object(tiling.tuning, "best", pick),
            ):
                results.append(run_op("triton", op, build(case)))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                torch.testing.assert_close(a, b, rtol=0.01, atol=0.01)


@pytest.mark.long
@pytest.mark.parametrize(
    ("dtype", "grid_size"),
    [*((torch.float32, size) for size in (12, 40, 50)), *((torch.bfloat16, size) for size in (12, 40))],
    ids=str,
)
def test_long_grids(grid_size: int, dtype: torch.dtype) -> None:
    """Groups of basis rows in one tile, groups in a loop, and gathered rows."""
    case = Case(40, 5, 40, grid_size, 3, 0, "adaptive", dtype=dtype)
    with launches() as seen:
        for op in OPS:
            check_op("triton", op, case, build(case))
    names = {name for name, _, _ in seen}
    gathered = grid_size + 3 >= (256 if dtype == torch.bfloat16 else 48)
    assert ("gather_forward" in names) == gathered and ("dense_forward" in names) == (not gathered)
    assert "dense_backward" in names


def test_one_pass() -> None:
    """One launch for both gradients where a tile holds every output, two kernels where it does not."""
    for case, names in (
        (Case(50, 2, 5, base=None), ["gather_backward"]),
        (Case(50, 20, 40, base=None, dtype=torch.bfloat16), ["dense_backward"]),
        (Case(50, 20, 40, base=None), ["dense_input", "dense_backward"]),
        (Case(50, 20, 300, base=None, dtype=torch.bfloat16), ["dense_input", "dense_backward"]),
    ):
        with launches() as seen:
            check_op("triton", "backward", case, build(case))
        assert [name for name, _, _ in seen] == names


def test_more_inputs_than_a_slice() -> None:
    """The input's gradient of more inputs than the basis is made for at a time, on any knots too."""
    for case in (Case(20, 37, 33, dtype=torch.bfloat16), Case(20, 21, 33, 4, 3, 1, "adaptive")):
        with launches() as seen:
            check_op("triton", "input", case, build(case))
        assert [(name, tile["BI"], tile["TOGETHER"]) for name, _, tile in seen] == [("dense_input", 32, True)]


def test_infinity_is_kept_by_strict_products() -> None:
    """Infinity in x: the base's products are infinite or NaN where plain torch's are."""
    for op in ("forward", "weight"):
        inputs = build(Case(9, 5, 20))
        inputs.x[2, 3] = torch.inf
        got, want = run_op("triton", op, inputs)[-1], run_op("reference", op, inputs)[-1]
        assert torch.equal(got.isinf(), want.isinf()) and want.isinf().any()


@pytest.mark.long
def test_sums_in_parts() -> None:
    """A long batch is summed in parts, in order, and the parts are as many as the shapes say."""
    case = Case(800, 2, 40)
    rows, parts = tiling.parts(tiling.Case("cpu", torch.float32, 800, 2, 40, 8, 3), torch.device("cpu"))
    assert parts == 3 and rows * (parts - 1) < 800 < rows * parts
    with launches() as seen:
        check_op("triton", "weight", case, build(case))
    assert [name for name, _, _ in seen].count("sum_parts") == 2


def test_float16_derivatives_keep_their_range() -> None:
    """On short cells, where 6 B'' of a cubic would leave float16 although B'' does not."""
    case = Case(20, 2, 20, 100, 3, 2, dtype=torch.float16, base=None, bias=False)
    for op in ("forward", "weight"):
        check_op("triton", op, case, build(case))


def test_no_outputs_no_features_no_rows() -> None:
    """Empty tensors of every kind, with zeros where a sum has no terms."""
    for rows, features, width in ((0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 3, 40), (5, 3, 20)):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.rand(rows, features, dtype=dtype)
            weight = torch.rand(features, 8, width, dtype=dtype)
            g, grid = torch.rand(rows, width, dtype=dtype), torch.rand(features, 12).sort(1).values
            t, d_spline, d_base = launch.kan_linear_backward(
                x, weight, weight[:, 0].clone(), g, grid, 8, 3, 1, 0, 0
            )
            assert (t.shape, d_spline.shape, d_base.shape) == (x.shape, weight.shape, weight[:, 0].shape)
            if not rows * width:
                assert not t.any() and not d_spline.any() and not d_base.any()
            y = launch.kan_linear(x, None, weight, None, None, grid, 8, 3, 0, 0, 0)
            assert y.shape == (rows, width) and (features or not y.any())


def test_tuning_remembers_classes_of_shapes(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of one class share what was measured, whichever a tile divides; a bad file is no error."""
    tuning = tiling.tuning
    monkeypatch.setenv("KAN_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "_loaded", set())
    (tuning.cache_file()).write_text("[]")
    measured = []

    def measure(tiles: list[dict], run: object) -> dict:
        measured.append(tiles)
        return tiles[-1]

    monkeypatch.setattr(tuning, "_measure", measure)
    device, constants = torch.device("cuda", 0), {"PRECISION": "ieee", "M": 0, "BASE": 1, "POLY": ()}
    for _ in range(3):
        for features in (1000, 1024):
            case = tiling.Case("cuda", torch.bfloat16, 4096, features, 1000, 8, 3)
            tiles = tiling.candidates("dense_forward", case, constants, False)
            assert tuning.best("dense_forward", device, case, constants, tiles, None) == tiles[-1]
    assert len(measured) == 1
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "_loaded", set())
    assert (
        tuning.best("dense_forward", device, case, constants, tiles, None) == tiles[-1] and len(measured) == 1
    )


@pytest.mark.long
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_compiled_and_exported(dtype: torch.dtype) -> None:
    """torch.compile(fullgraph=True) sees one op a layer, with gradients of first and second order."""
    net = KAN([3, 20, 2], backend="triton", dtype=dtype)
    x = torch.randn(7, 3, dtype=dtype, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))
    wanted = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    got = torch.autograd.grad(compiled(x).square().sum(), [x, *net.parameters()])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
    exported = torch.export.export(net, (x,))
    assert sum("kan_kernels_triton" in str(node.target) for node in exported.graph.nodes) == 2
    torch.testing.assert_close(exported.module()(x), net(x))


@pytest.mark.long
def test_ops_pass_opcheck() -> None:
    """Schemas, fake kernels and autograd registration, as torch checks them."""
    inputs = build(Case(6, 3, 20, side=True, dtype=torch.float64))
    for op in OPS:
        args = [
            a.clone().requires_grad_() if isinstance(a, torch.Tensor) and n != len(inputs.args(op)) - 4 else a
            for n, a in enumerate(inputs.args(op))
        ]
        torch.library.opcheck(getattr(torch.ops.kan_kernels_triton, OPS[op]), tuple(args))


def test_new_precision_settings() -> None:
    """torch's newer names for the same setting are obeyed, and do not raise."""
    was = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert launch.precision(torch.float32) == "tf32"
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert launch.precision(torch.float32) == "tf32x3"
    finally:
        torch.backends.cuda.matmul.fp32_precision = was


@pytest.mark.parametrize("op", OPS)
def test_ops_check_too(op: str) -> None:
    """An op called directly refuses what its kernels would read out of bounds, naming the argument."""
    call = getattr(torch.ops.kan_kernels_triton, OPS[op])
    args = list(build(Case(6, 3, 4, 5, 2, 0, side=True)).args(op))
    call(*args)
    tensors = [n for n, a in enumerate(args) if isinstance(a, torch.Tensor)]
    for n in tensors:
        wrongs = [args[n].unsqueeze(0), args[n].long(), torch.cat([args[n], args[n]], -1)]
        for wrong in wrongs[:2] if op == "weight" and n >= 2 else wrongs:  # a wider g or grid fits there
            changed = [wrong if i == n else a for i, a in enumerate(args)]
            with pytest.raises((ValueError, TypeError), match=r"got|is on"):
                call(*changed)
    for n, value in ((-5, 6), (-4, 11), (-4, -1), (-3, 3), (-3, -1), (-2, -1), (-2, 40), (-1, 9)):
        changed = list(args)
        changed[n] = value
        with pytest.raises((ValueError, TypeError), match="got"):
            call(*changed)


@pytest.mark.long
def test_second_order_through_the_layer() -> None:
    """A PDE residual's gradient: the Laplacian of a small network, against the reference."""
    results = []
    for backend in ("triton", "reference"):
        torch.manual_seed(0)
        net = KAN([2, 17, 1], grid_size=4, backend=backend, dtype=torch.float64)
        x = torch.linspace(-0.9, 0.9, 12, dtype=torch.float64).view(6, 2).requires_grad_()
        (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        second = sum(torch.autograd.grad(first[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
        results.append(torch.autograd.grad(second.square().sum(), [x, *net.parameters()]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_deterministic_mode_fixes_the_tile() -> None:
    """The first candidate, whatever was measured."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        tile = tiling.tuning.best(
            "dense_forward", torch.device("cuda", 0), None, {}, [{"a": 1}, {"a": 2}], None
        )
    finally:
        torch.use_deterministic_algorithms(was)
    assert tile == {"a": 1}


def test_autocast_and_contexts() -> None:
    """use_backend chooses this backend; autocast rounds operands, not x."""
    net, x = KAN([3, 20]), torch.rand(9, 3) * 2 - 1
    with use_backend("triton"), torch.autocast("cpu", torch.bfloat16), launches() as seen:
        y = net(x)
    assert y.dtype == torch.bfloat16 and seen[0][0] == "dense_forward"
    torch.testing.assert_close(y.float(), net(x), rtol=0.02, atol=0.02)
    case = replace(Case(9, 3, 20), dtype=torch.bfloat16, x_dtype=torch.float32)
    assert launch.precision(case.dtype) == "ieee"


@pytest.mark.long
def test_gradients_of_first_and_second_order() -> None:
    """gradcheck and gradgradcheck in float64, along random directions."""
    inputs = build(Case(2, 2, 3, 3, 3, 0, "adaptive", "inside", torch.float64))
    leaves = [t.clone().requires_grad_() for t in (inputs.x * 0.9, inputs.spline_weight, inputs.base_weight)]

    def layer(x: torch.Tensor, weight: torch.Tensor, base_weight: torch.Tensor) -> torch.Tensor:
        return functional.kan_linear(
            x, weight, inputs.grid, spline_order=3, base_weight=base_weight, backend="triton"
        )

    assert torch.autograd.gradcheck(layer, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, leaves, fast_mode=True)
