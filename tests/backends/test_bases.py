"""Bases that are not local: the ops on a case table of their own, derivatives, bits, errors."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import bases
import harness
from basis_cases import LAYOUTS, NAMES, TABLE, as_function, case, laid_out, tensors
from cases import OPS, Case, build, sparse
from harness import DEVICE, bits, check_op, check_same_bits, run_op
from kan_kernels import MAX_DERIVATIVE, KANLinear, use_backend
from kan_kernels import functional as F
from kan_kernels._core.bases import BASES
from kan_kernels._core.problem import Problem, without_kernel

F32, F64 = torch.float32, torch.float64
BACKENDS = ("reference", "native")
REFERENCE_LONG = [pytest.param("reference", marks=pytest.mark.long), "native"]


LARGE = [case(b, r, 1500, 30, 70, points="nan", side=r > 8) for b, r in product(NAMES, (8, 20))]


# the reference has no path of its own for many rows
RUNS = [
    (name, c)
    for name in dict.fromkeys((*BACKENDS, *harness.BACKENDS))
    for c in (*TABLE, *LARGE)
    if name != "reference" or c.batch < 1000
]


@pytest.mark.parametrize(
    "name,c", sparse(RUNS, 6 if DEVICE == "cpu" else 1), ids=lambda v: v if isinstance(v, str) else v.name
)
def test_op(name: str, c: Case) -> None:
    """Every op on every case, outputs poisoned before the run."""
    if name == "native" and DEVICE == "cuda" and not BASES[c.basis].cuda:
        pytest.skip(f"the CUDA kernels do not have the basis {c.basis!r}")
    inputs = build(c, DEVICE if name in harness.BACKENDS else "cpu")
    for op in OPS:
        check_op(name, op, c, inputs)


@pytest.mark.parametrize("c", [*TABLE[::9], *LARGE], ids=lambda c: c.name)
def test_same_bits(c: Case) -> None:
    """The same inputs give the same bits with 1, 2 and 3 threads."""
    inputs = build(c)
    for op in OPS:
        check_same_bits(lambda op=op: run_op("native", op, inputs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", (F32, F64, torch.bfloat16))
@pytest.mark.parametrize(
    "sizes", ((8, 90, 17, 100), (5, 1700, 3, 37), (13, 40, 33, 1), (1, 9, 2, 16), (8, 5, 1, 1000))
)
@pytest.mark.parametrize("basis", NAMES)
def test_weights_as_they_lie(basis: str, sizes: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    """Weights that keep the functions of an edge together: the same bits, a gradient of that layout."""
    functions, *shape = sizes
    for base in (None, "silu"):
        inputs = build(case(basis, functions, *shape, points="inside", dtype=dtype, base=base))
        plain = {op: run_op("native", op, inputs) for op in OPS}
        inputs.spline_weight = laid_out(inputs.spline_weight, layout)
        for op in OPS:
            for a, b in zip(run_op("native", op, inputs), plain[op], strict=True):
                assert torch.equal(bits(a.contiguous()), bits(b)), op
        weight = inputs.spline_weight
        gradient = run_op("native", "backward", inputs)[1]
        alone = torch.ops.kan_kernels.kan_linear_grad_weight(*inputs.args("weight"), weight)[0]
        assert torch.equal(bits(alone.contiguous()), bits(plain["weight"][0]))
        if dtype != torch.bfloat16 and not weight.is_contiguous():
            assert gradient.stride() == alone.stride() == weight.stride()
        else:
            assert gradient.is_contiguous() and alone.is_contiguous()


@pytest.mark.parametrize("basis,op", sparse([(basis, op) for basis in NAMES for op in OPS], 3))
def test_opcheck(basis: str, op: str) -> None:
    """torch's own checks of the ops: schema, fakes (shapes and strides), autograd, tracing."""
    for layout in (None, list(LAYOUTS)[list(OPS).index(op) % 2]):
        inputs = build(case(basis, 5, points="inside"))
        if layout is not None:
            inputs.spline_weight = laid_out(inputs.spline_weight, layout)
        args = [
            a.requires_grad_() if isinstance(a, Tensor) and a is not inputs.grid else a
            for a in inputs.args(op)
        ]
        args += [inputs.spline_weight] if op == "weight" else []
        torch.library.opcheck(getattr(torch.ops.kan_kernels, OPS[op]), tuple(args))


@pytest.mark.parametrize("name", REFERENCE_LONG)
@pytest.mark.parametrize("base", (None, "silu"))
@pytest.mark.parametrize("basis", NAMES)
def test_gradcheck(name: str, base: str | None, basis: str) -> None:
    """First and second derivatives with respect to every tensor."""
    function, leaves = as_function(tensors(basis, 5, base), basis=basis, base=base, backend=name)
    assert gradcheck(function, leaves, atol=1e-6, rtol=1e-5)
    assert gradgradcheck(function, leaves, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("basis", NAMES)
def test_nested_derivatives(name: str, basis: str) -> None:
    """d^m y / dx^m by nested autograd is the oracle's m-th derivative, past a polynomial's degree as well."""
    functions = 4
    t = tensors(basis, functions, None)
    y = F.basis_linear(**{**t, "bias": None}, basis=basis, backend=name)[:, 1].sum()
    for m in range(1, 6):
        (d,) = torch.autograd.grad(y, t["x"], create_graph=True)
        grid = torch.empty(2, 0, dtype=F64) if t["grid"] is None else t["grid"]
        phi = bases.values(bases.CODES[basis], t["x"].detach(), grid, functions, m)
        want = torch.einsum("bir,ir->bi", phi, t["weight"][..., 1].detach())
        torch.testing.assert_close(d, want, rtol=1e-10, atol=1e-10)
        y = d.sum()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("basis", (*NAMES, "bspline"))
def test_gradient_of_the_highest_derivative(name: str, basis: str) -> None:
    """An output of order 32 has a gradient with respect to x; order 34 is refused by compiled kernels."""
    t = tensors("rbf" if basis == "bspline" else basis, 7, "silu")
    leaves = {"base_weight": t["base_weight"], "base": "silu", "derivative": MAX_DERIVATIVE, "backend": name}
    if basis == "bspline":
        knots = torch.linspace(-2, 2, 11, dtype=F64).repeat(2, 1)
        y = F.kan_linear(t["x"], t["weight"], knots, spline_order=3, **leaves)
    else:
        y = F.basis_linear(t["x"], t["weight"], t["grid"], basis=basis, **leaves)
    v = torch.ones_like(y)
    both = torch.autograd.grad(y, [t["x"], t["weight"]], v, retain_graph=True)
    (alone,) = torch.autograd.grad(y, t["x"], v, retain_graph=True)
    code, grid = bases.CODES.get(basis, 0), torch.empty(2, 0, dtype=F64) if t["grid"] is None else t["grid"]
    want = torch.einsum("io,bi->bi", t["base_weight"], _silu(t["x"].detach(), MAX_DERIVATIVE + 1)).detach()
    if basis != "bspline":  # a cubic's is 0, and so is that of a polynomial of degree 6
        functions = t["weight"].shape[1]
        phi = bases.values(code, t["x"].detach(), grid, functions, MAX_DERIVATIVE + 1)
        want = want + torch.einsum("bir,iro->bi", phi, t["weight"].detach())
    scale = float(want.abs().max())
    for got in (both[0], alone):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9 * scale)
    if name == "native":
        (again,) = torch.autograd.grad(y, t["x"], v, create_graph=True)
        with pytest.raises(RuntimeError, match=r"derivative must be in 0\.\.33, got 34"):
            again.sum().backward()


def _silu(x: Tensor, m: int) -> Tensor:
    """The m-th derivative of silu: x s^(m) + m s^(m-1), s^(n) a polynomial of s by s' = s - s^2."""
    logistic = {}
    coefficients = [0, 1]  # Python's integers
    for n in range(m + 1):
        logistic[n] = coefficients
        slope = [k * c for k, c in enumerate(coefficients)]
        coefficients = [a - b for a, b in zip([*slope, 0], [0, *slope], strict=True)]
    results = []
    for value in x.flatten().tolist():
        exact = Fraction(1 / (1 + math.exp(-value)))
        high, low = (sum(c * exact**k for k, c in enumerate(logistic[n])) for n in (m, m - 1))
        results.append(float(Fraction(value) * high + m * low))
    return torch.tensor(results, dtype=x.dtype).view_as(x)


@pytest.mark.parametrize("basis", NAMES)
def test_transforms(basis: str) -> None:
    """torch.func: forward mode, reverse over forward and vmap agree with the reference."""
    results = []
    for name in BACKENDS:
        function, leaves = as_function(tensors(basis, 5, "silu"), basis=basis, base="silu", backend=name)
        leaves = tuple(leaf.detach() for leaf in leaves)
        x, rest = leaves[0], leaves[1:]
        directions = tuple(torch.ones_like(leaf) for leaf in leaves)
        _, tangent = torch.func.jvp(function, leaves, directions)
        hessian = torch.func.hessian(lambda row, f=function, rest=rest: f(row[None], *rest).sum())(x[0])
        rows = torch.func.vmap(lambda row, f=function, rest=rest: f(row, *rest))(x.unsqueeze(1))
        results.append((tangent, hessian, rows))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("basis", NAMES)
def test_compiled(basis: str) -> None:
    """torch.compile sees one op; its gradients are those of the eager call."""
    t = tensors(basis, 9, "silu", F32)
    function, leaves = as_function(t, basis=basis, base="silu", backend="native")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(*leaves).square().sum(), leaves) for f in (function, compiled)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", (F32, F64))
@pytest.mark.parametrize("name", BACKENDS)
def test_ends_of_the_interval(name: str, dtype: torch.dtype) -> None:
    """At x = +-1: T_r = 1, T_r' = r^2, T_r'' = r^2 (r^2 - 1) / 3, signed, to 16 eps."""
    r = torch.arange(12, dtype=dtype)
    signs = torch.stack([torch.ones_like(r), (-1.0) ** r])
    x = torch.tensor([[1.0], [-1.0]], dtype=dtype)
    for m, size in enumerate((torch.ones_like(r), r**2, r**2 * (r**2 - 1) / 3)):
        got = F.basis_linear(
            x, torch.eye(12, dtype=dtype)[None], basis="chebyshev", derivative=m, backend=name
        )
        want = size * signs * torch.tensor([[1.0], [(-1.0) ** m]], dtype=dtype)
        torch.testing.assert_close(got, want, rtol=16 * torch.finfo(dtype).eps, atol=0)


def test_saves_little() -> None:
    """What autograd keeps is x, the weights and the grid: nothing of size B I R."""
    for basis in NAMES:
        c = case(basis, 16, 500, 24, 40, points="inside", base=None)
        inputs = build(c)
        weight, x = inputs.spline_weight.requires_grad_(), inputs.x.requires_grad_()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()), lambda t: t):
            F.basis_linear(x, weight, inputs.grid if inputs.grid.shape[1] else None, basis=basis)
        assert sizes and sum(sizes) <= x.numel() + weight.numel() + inputs.grid.numel()


WRONG = [
    ({"basis": "wavelet"}, ValueError, "basis: got 'wavelet'"),
    ({"basis": "bspline"}, ValueError, "kan_linear"),
    ({"basis": 1}, TypeError, "basis: got 1"),
    ({"grid": None}, TypeError, "grid: got NoneType"),
    ({"grid": torch.ones(2, 5, dtype=F64)}, ValueError, r"grid: got shape \(2, 5\), expected \(2, 6\)"),
    ({"grid": torch.ones(2, 6, dtype=torch.float16)}, TypeError, "grid: got torch.float16"),
    ({"grid": torch.ones(2, 6, dtype=F64, requires_grad=True)}, ValueError, "no gradient for centres"),
    ({"grid": torch.tensor([[0.0, 1, 2, 3, 4, 0]] * 2, dtype=F64)}, ValueError, "width of feature 0 is 0.0"),
    (
        {"grid": torch.tensor([[0.0, 1, torch.inf, 3, 4, 1]] * 2, dtype=F64)},
        ValueError,
        "centre 2 of feature 0",
    ),
    ({"grid": torch.ones(2, 6, dtype=F64), "basis": "chebyshev"}, ValueError, "expected None"),
    ({"grid": None, "basis": "fourier"}, ValueError, "got 5, expected an even number"),
    ({"weight": torch.ones(2, 0, 3, dtype=F64)}, ValueError, "weight.shape"),
    ({"weight": torch.ones(2, 257, 3, dtype=F64)}, ValueError, "weight.shape"),
    ({"weight": torch.ones(2, 5, dtype=F64)}, ValueError, "weight: got 2 dimensions"),
    ({"x": torch.ones(4, 3, dtype=F64)}, ValueError, r"x: got shape \(4, 3\)"),
    ({"x": torch.ones(4, 2)}, TypeError, "x: got torch.float32, expected torch.float64 like weight"),
    ({"base": "silu"}, ValueError, "base_weight: got None with base='silu'"),
    ({"bias": torch.ones(2, dtype=F64)}, ValueError, r"bias: got shape \(2,\)"),
    ({"derivative": 33}, ValueError, "derivative: got 33"),
    ({"backend": "cuda"}, ValueError, "backend: unknown"),
]


@pytest.mark.parametrize("change,error,message", WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Bad arguments are named before a kernel runs, also after a good call of the same shapes."""
    good = {k: v for k, v in tensors("rbf", 5, None).items() if k != "base_weight"}
    F.basis_linear(**good, basis="rbf")
    with pytest.raises(error, match=message):
        F.basis_linear(**{**good, "basis": "rbf", **change})


def test_ops_refuse_what_they_do_not_know() -> None:
    """The compiled ops check the basis, its grid and order themselves."""
    inputs = build(case("rbf", 5))
    args = list(inputs.args("forward"))
    assert args[-1] == bases.CODES["rbf"]
    for at, value, message in (
        (-1, 5, "basis must be"),
        (-1, -1, "basis must be"),
        (-4, 1, "order"),
    ):
        changed = list(args)
        changed[at] = value
        with pytest.raises(RuntimeError, match=message):
            torch.ops.kan_kernels.kan_linear(*changed)
    args[-1] = bases.CODES["chebyshev"]
    with pytest.raises(RuntimeError, match="grid has 6 columns, expected 0"):
        torch.ops.kan_kernels.kan_linear(*args)


def test_who_runs_a_basis() -> None:
    """Compiled kernels run every basis, to 256 functions; a basis that CUDA lacks is refused by name."""
    from kan_kernels.backends import native

    polynomials = Problem("cpu", F32, F32, 8, 8, 32, basis="chebyshev")
    assert native.can_run(polynomials) is None
    too_many = Problem("cpu", F32, F32, 8, 8, 257, basis="chebyshev")
    assert "257 functions" in str(native.can_run(too_many))
    known = tuple(name for name, basis in BASES.items() if basis.cuda)
    for basis in BASES:
        said = without_kernel(Problem("cuda", F32, F32, 8, 8, 10, basis=basis), "x", ("kan_linear",), known)
        assert said is None if basis != "fourier" else "basis 'fourier'" in str(said)


def test_use_backend_and_splines_are_as_before() -> None:
    """use_backend holds for every basis, and a layer of B-splines is not touched by it."""
    t = tensors("rbf", 5, None)
    with use_backend("reference"):
        a = F.basis_linear(t["x"], t["weight"], t["grid"], basis="rbf")
    torch.testing.assert_close(
        a, F.basis_linear(t["x"], t["weight"], t["grid"], basis="rbf", backend="native")
    )
    layer = KANLinear(2, 3, dtype=F64)
    args = (
        t["x"].detach(),
        None,
        layer.spline_weight.detach(),
        layer.base_weight.detach(),
        None,
        layer.grid,
        8,
        3,
        1,
        0,
    )
    y = torch.ops.kan_kernels.kan_linear(*args, 0)
    assert torch.equal(y, layer(t["x"].detach()))
