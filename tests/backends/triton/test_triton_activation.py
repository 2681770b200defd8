"""The four ops of kan_activation on the Triton kernels, in Triton's interpreter (`make interpret`)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, hessian, vmap

from activation_cases import AXES, OPS, arguments, build_activation, check_activation, run_activation
from bases import CODES
from cases import TABLE, Case
from harness import FUSED, INTERPRETED, bits
from interpreted import launches
from kan_kernels import KANActivation, MultiHeadKANLinear, explain, use_backend
from kan_kernels import functional as F

pytestmark = pytest.mark.skipif(
    not (INTERPRETED and "triton" in FUSED),
    reason="needs TRITON_INTERPRET=1 and triton in KAN_TEST_BACKENDS: `make interpret` runs it",
)
if INTERPRETED:
    from kan_kernels.backends.triton import activation_launch, blocking

HALF = torch.bfloat16
ORDERS = [(k, m) for k in range(4) for m in range(k + 2)]
SHORT = [
    # uniform knots in 16 bits; any knots, NaN, float32 x; uneven tiles, heads in two blocks, a scale of rows
    Case(21, 9, 2, dtype=HALF, side=True),
    Case(18, 5, 1, 9, 3, 0, "adaptive", "nan", HALF, torch.float32, base=None),
    # float32: looked up, and evaluated where the order is above 3 or the functions are many
    Case(11, 3, 4, 5, 3, 0, "steep", "nan"),
    Case(17, 3, 3, 4, 4, 2, "adaptive", "knots", base=None),
    Case(13, 3, 3, 4, 2, 1, "adaptive", "nan", torch.float64, base=None),
    Case(9, 4, 2, 20, 3, 0, "adaptive", side=True),
    Case(12, 6, 4, points="inf"),
]
MORE = [
    Case(11, 3, 5, 5, 3, 0, "steep", "nan"),
    Case(19, 6, 4, 6, 2, 1, "ranges", "mixed", torch.float16, base="identity"),
    Case(70, 37, 1), Case(67, 70, 3, side=True, dtype=HALF), Case(130, 18, 4), Case(300, 5, 2, side=True),
    Case(64, 64, 4, dtype=HALF), Case(33, 9, 3, 4, 1, 1), Case(33, 7, 4, 12), Case(33, 9, 1, 40),
    *(Case(33, 5, 2, 5, k, m, "uniform", "knots", HALF, torch.float32) for k, m in ORDERS),
    *(Case(33, 5, 2, 5, k, m, "repeated", "knots") for k, m in ORDERS),
    Case(33, 6, 2, layout="transposed"), Case(33, 6, 3, layout="sliced", side=True),
    Case(33, 6, 1, layout="column"), Case(33, 6, 1, layout="expanded"),
    *(
        Case(
            33, 6, heads, 9 - 2 * (basis == "fourier"), 3, m,
            points="inside" if dtype == torch.float16 else "mixed",  # farther out is more than it holds
            basis=basis, dtype=dtype, base=base,
        )
        for basis in CODES if basis != "bspline"
        for heads, m, dtype, base in (
            (3, 0, torch.float32, "silu"), (2, 2, torch.float64, None), (1, 1, torch.float16, None),
            (4, 0, HALF, "silu"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", SHORT, ids=lambda c: c.name)
def test_op(case: Case) -> None:
    """Every op on what has a path of its own, outputs poisoned before the run."""
    inputs = build_activation(case)
    for op in OPS:
        check_activation("triton", op, case, inputs)


@pytest.mark.long
@pytest.mark.parametrize("case", [*TABLE[3::11], *MORE], ids=lambda c: c.name)
def test_op_on_the_table(case: Case) -> None:
    """The same on the cases that the CPU's kernels are tested with."""
    inputs = build_activation(case)
    for op in OPS:
        check_activation("triton", op, case, inputs)


def test_which_kernels() -> None:
    """One pass for few heads and basis rows; lookups for low orders; products but for float64."""
    for case, names, looked_up, products in (
        (Case(9, 4, 1, dtype=HALF), ["activation_backward"], True, True),
        (Case(9, 4, 4, order=5), ["activation_input", "activation_backward"], False, True),
        (Case(9, 4, 3, 20), ["activation_input", "activation_backward"], True, True),
        (Case(9, 4, 2, dtype=torch.float64), ["activation_backward"], False, False),
    ):
        with launches() as seen:
            run_activation("triton", "backward", build_activation(case))
        tables = [name for name, *_ in seen if name == "polynomial_table"]
        kernels = [name for name, *_ in seen if name.startswith("activation")]
        assert (kernels, bool(tables)) == (names, looked_up), case.name
        constants = next(c for name, c, _ in seen if name == "activation_backward")
        assert (constants["PRECISION"] is not None) == products


def test_uniform_knots_that_are_none_any_longer() -> None:
    """Knots written behind torch's back give NaN in their feature, whatever the base."""
    for base in ("silu", None):
        inputs = build_activation(Case(9, 5, 2, dtype=HALF, base=base, points="inside"))
        assert not any(t.isnan().any() for t in run_activation("triton", "backward", inputs))
        inputs.grid.data[2, 6] += 0.1
        for op in ("forward", "backward"):
            for result, axis in zip(run_activation("triton", op, inputs), AXES[op], strict=True):
                if result.numel():  # d_base without a base has no features
                    of_feature = result.movedim(axis, 0)
                    assert of_feature[2].isnan().all() and not of_feature[[0, 1, 3, 4]].isnan().any(), op


@pytest.mark.long
def test_infinite_numbers_stay_with_their_feature() -> None:
    """inf in g and in coefficients reaches one feature, though products are of several."""
    for dtype in (torch.float32, HALF):
        inputs = build_activation(Case(9, 5, 2, dtype=dtype, points="inside"))
        inputs.g[3, 2, 0], inputs.spline_weight[1, 0, 0] = torch.inf, torch.inf
        (v,) = run_activation("triton", "forward", inputs)
        t, d_spline, d_base = run_activation("triton", "backward", inputs)
        assert v[:, [0, 2, 3, 4]].isfinite().all() and t[:, [0, 3, 4]].isfinite().all()
        assert d_spline[[0, 1, 3, 4]].isfinite().all() and d_base[[0, 1, 3, 4]].isfinite().all()
        assert not d_spline[2, :, 0].isfinite().any() and d_spline[2, :, 1].isfinite().all()


@pytest.mark.long
def test_sums_in_parts() -> None:
    """A long batch is summed in parts, in order: the same bits again, and in other strides."""
    case = Case(900, 4, 2)
    inputs = build_activation(case)
    with launches() as seen:
        check_activation("triton", "weight", case, inputs)
    assert [name for name, *_ in seen].count("sum_parts") == 2
    strided = replace(
        inputs, x=inputs.x.t().contiguous().t(), g=inputs.g.transpose(0, 2).contiguous().transpose(0, 2)
    )
    first = run_activation("triton", "weight", inputs)
    for other in (inputs, strided):
        for a, b in zip(first, run_activation("triton", "weight", other), strict=True):
            assert torch.equal(bits(a), bits(b))


def test_empty_sizes() -> None:
    """No rows, no features and no heads: the right shapes, sums of nothing being zero."""
    for rows, features, heads in ((0, 3, 2), (4, 0, 2), (4, 3, 0)):
        for dtype in (torch.float32, HALF):
            x, grid = torch.zeros(rows, features, dtype=dtype), torch.linspace(-1, 1, 12).repeat(features, 1)
            weight = torch.ones(features, 8, heads, dtype=dtype)
            base, g = weight[:, 0].clone(), torch.ones(rows, features, heads, dtype=dtype)
            tail = (grid, 8, 3, 1, 0, 0)
            assert activation_launch.kan_activation(x, None, weight, base, *tail).shape == g.shape
            found = activation_launch.kan_activation_backward(x, weight, base, g, *tail)
            assert [t.shape for t in found] == [x.shape, weight.shape, base.shape]
            assert not any(t.any() for t in found)


def test_centred_polynomials() -> None:
    """The numbers by which Bernstein's form becomes a series about the middle of a cell."""
    v = torch.linspace(-0.5, 0.5, 7, dtype=torch.float64)
    for degree in range(4):
        for q, row in enumerate(blocking.centred(degree)):
            series = sum(c * v**p for p, c in enumerate(row))
            torch.testing.assert_close(series, (0.5 + v) ** q * (0.5 - v) ** (degree - q))


@pytest.mark.parametrize("op", OPS)
def test_ops_check_too(op: str) -> None:
    """An op called directly refuses what its kernels would read out of bounds, naming the argument."""
    call = getattr(torch.ops.kan_kernels_triton, OPS[op])
    args = list(arguments(op, build_activation(Case(6, 3, 2, 5, 2, 0, side=True))))
    for n in (n for n, a in enumerate(args) if isinstance(a, Tensor)):
        for wrong in (args[n].unsqueeze(0), args[n].long()):
            with pytest.raises((ValueError, TypeError), match=r"got|is on"):
                call(*[wrong if i == n else a for i, a in enumerate(args)])
    if op != "forward":
        place = 2 if op == "weight" else 3
        with pytest.raises(ValueError, match="g: got shape"):
            call(*[a[:, :-1] if i == place else a for i, a in enumerate(args)])


@pytest.mark.long
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    """torch's own checks: schema, fakes (shapes and strides), autograd, tracing."""
    inputs = build_activation(Case(6, 3, 2, side=True, dtype=torch.float64))
    args = [
        a.requires_grad_() if isinstance(a, Tensor) and a is not inputs.grid else a
        for a in arguments(op, inputs)
    ]
    torch.library.opcheck(getattr(torch.ops.kan_kernels_triton, OPS[op]), tuple(args))


@pytest.mark.long
def test_derivatives_and_transforms() -> None:
    """Two orders by finite differences; an ensemble under vmap; a compiled layer."""
    gen = torch.Generator().manual_seed(0)
    shapes = (3, 2), (2, 6, 2), (2, 2)
    leaves = [torch.randn(s, generator=gen, dtype=torch.float64).requires_grad_() for s in shapes]
    grid = torch.linspace(-3.1, 3.2, 10, dtype=torch.float64).repeat(2, 1)

    def call(x: Tensor, weight: Tensor, base: Tensor) -> Tensor:
        return F.kan_activation(x, weight, grid, spline_order=3, base_weight=base, backend="triton")

    assert gradcheck(call, leaves, fast_mode=True) and gradgradcheck(call, leaves, fast_mode=True)
    plain = [t.detach() for t in leaves]
    stacked = [torch.stack([t, 2 * t]) for t in plain]
    loop = torch.stack([call(*one) for one in zip(*stacked, strict=True)])
    torch.testing.assert_close(vmap(call)(*stacked), loop)
    direct = torch.autograd.functional.hessian(lambda x: call(x, *plain[1:]).pow(2).sum(), plain[0])
    torch.testing.assert_close(hessian(lambda x: call(x, *plain[1:]).pow(2).sum())(plain[0]), direct)
    torch._dynamo.reset()
    layer, x = MultiHeadKANLinear(4, 6, 2, backend="triton", dtype=torch.float64), plain[0].repeat(1, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    with use_backend("reference"):
        want = functional_call(layer, dict(layer.named_parameters()), (x,))
    torch.testing.assert_close(layer(x), want)


def test_modules_say_so() -> None:
    """explain names the kernels, and autocast rounds the weights, not x."""
    layer = KANActivation(6, backend="triton")
    assert "triton: asked for by backend=" in explain(layer)
    with torch.autocast("cpu", HALF):
        v = layer(torch.randn(3, 6))
    assert v.dtype == HALF
