"""Sums over the rows: basis Gram matrices, per-edge moments and per-edge L1 norms, against dense float64
sums."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

import oracle
from cases import HALF, TABLE, Case, Inputs, build
from golden import FIXTURES, load, order_of, pykan
from harness import BACKENDS, DEVICE, FUSED, REFERENCE_LONG, child, poisoned_memory, run_tests, threads
from kan_kernels import functional as F
from kan_kernels import use_backend

BASE = {0: None, 1: "silu", 2: "identity"}
NATIVE = pytest.mark.skipif("native" not in FUSED or DEVICE != "cpu", reason="for the compiled CPU ops")
LARGE = [  # split rows, several blocks of rows, many features, many outputs, long grids
    Case(9000, 1, 3, dtype=torch.float64),
    Case(5000, 2, 7, 30, 2),
    Case(2500, 40, 5, 5, 3, base=None),
    Case(300, 2, 40, 120, 3, knots="adaptive"),
    Case(1500, 3, 2, 1, 10, dtype=torch.float64),
]
CASES = [c for c in TABLE if c.derivative == 0 and c.batch > 1 and c.points != "inf"] + LARGE


def edges(inputs: Inputs, **changes: Tensor | None) -> dict:  # type: ignore[type-arg]
    """The arguments of the edge statistics but x, `changes` in place of a weight."""
    return {
        "spline_weight": inputs.spline_weight,
        "grid": inputs.grid,
        "spline_order": inputs.order,
        "base_weight": inputs.base_weight,
        "base": BASE[inputs.base],
        **changes,
    }


def dense_edges(x: Tensor, c: Tensor, b: Tensor | None, inputs: Inputs) -> Tensor:
    """phi[b,i,o], straight from the definition."""
    phi = torch.einsum("bir,iro->bio", oracle.basis(x, inputs.grid, inputs.order), c)
    return phi if b is None else phi + oracle.base(x, inputs.base, 0).unsqueeze(2) * b


def dense_gradients(case: Case, statistics: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Statistics and the gradients of <them, cotangents>, dense in float64; and the scales of their errors.

    A scale is the same sum over absolute values; derivatives of x are taken from the oracle, not from
    autograd.
    """
    inputs = build(case).to(torch.float64)
    x, c, b, rows = inputs.x, inputs.spline_weight, inputs.base_weight, inputs.x.shape[0]
    basis, slope = (oracle.basis(x, inputs.grid, inputs.order, m) for m in (0, 1))
    phi, dphi = (torch.einsum("bir,iro->bio", f, c) for f in (basis, slope))
    size, dsize = (torch.einsum("bir,iro->bio", f.abs(), c.abs()) for f in (basis, slope))
    if b is not None:
        row, drow = (oracle.base(x, inputs.base, m).unsqueeze(2) for m in (0, 1))
        phi, dphi = phi + row * b, dphi + drow * b
        size, dsize = size + row.abs() * b.abs(), dsize + drow.abs() * b.abs()
    gs = cotangents(phi.shape[1:])
    if statistics == "l1":
        results, scales = [phi.abs().mean(0)], [size.mean(0)]
        pull = phi.sign() * gs[0] / rows
        weight = (gs[0].abs() / rows).expand_as(phi)
    else:
        mean, square = phi.mean(0), phi.square().mean(0)
        results, scales = [mean, square], [size.mean(0), size.square().mean(0)]
        pull = (gs[0] + 2 * gs[1] * phi) / rows
        # std^2 + mean^2 is the mean square, but its gradients come as a difference with those of mean^2
        weight = (gs[0].abs() + 2 * gs[1].abs() * (size + 2 * size.mean(0))) / rows
    grads = [(pull * dphi).sum(2), torch.einsum("bio,bir->iro", pull, basis)]
    scales += [(weight * dsize).sum(2), torch.einsum("bio,bir->iro", weight, basis.abs())]
    if b is not None:
        grads.append((pull * row).sum(0))
        scales.append((weight * row.abs()).sum(0))
    return results, grads, scales


def cotangents(shape: torch.Size) -> list[Tensor]:
    gen = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=gen, dtype=torch.float64) for _ in range(2)]


def assert_sums(got: Tensor, truth: Tensor, scale: Tensor, eps: float, what: str) -> None:
    """|got - truth| <= 64 eps of the same sum over absolute values: k steps of the triangle, the logistic
    function and a sum in blocks; NaN exactly where the truth has it.
    """
    assert got.shape == truth.shape, what
    info = torch.finfo(got.dtype)
    floor = info.tiny * info.eps if got.dtype in HALF else info.tiny  # below it precision ends
    got = got.double().cpu()
    assert torch.equal(got.isnan(), truth.isnan()), f"{what}: NaN in other places"
    finite = truth.isfinite() & scale.isfinite()
    error = (got - truth).abs()[finite] - 64 * eps * scale[finite]
    assert error.numel() == 0 or error.max() <= floor, f"{what}: {error.max()}"


@pytest.mark.parametrize("backend", REFERENCE_LONG)
@pytest.mark.parametrize("weighted", [False, True])
def test_basis_gram(backend: str, weighted: bool) -> None:
    """Band and rectangle against dense sums, on every layout, dtype, knot and point of the table."""
    for case in CASES:
        inputs = build(case, DEVICE)
        x = inputs.x.double().cpu()
        w = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        grid = inputs.grid.double().cpu()
        other = (0.9 * grid + 0.03)[:, : max(2 * (case.order // 2) + 2, grid.shape[1] - 1)]
        first, second = oracle.basis(x, grid, case.order), oracle.basis(x, other, case.order // 2)
        left = first * w.unsqueeze(2) if weighted else first
        options = {"row_weight": w.to(DEVICE) if weighted else None}
        with use_backend(backend), poisoned_memory():
            band = F.basis_gram(inputs.x, inputs.grid, case.order, **options)
            cross = F.basis_gram(
                inputs.x, inputs.grid, case.order, other_grid=other.to(DEVICE), other_order=case.order // 2,
                **options
            )  # fmt: skip
        square = torch.einsum("bir,biq->irq", left, first)
        truth = torch.zeros(band.shape, dtype=torch.float64)
        for d in range(min(case.order + 1, square.shape[1])):
            truth[:, : square.shape[1] - d, d] = square.diagonal(d, 1, 2)
        eps = torch.finfo(torch.float64).eps
        assert_sums(band, truth, truth.abs(), eps, f"{case.name}: band")
        want = torch.einsum("bir,biq->irq", left, second)
        assert_sums(cross, want, want.abs(), eps, f"{case.name}: cross")


def test_row_weight_of_rows(backend: str) -> None:
    """A weight for each row is that weight for each of its features; leading dimensions are rows."""
    inputs = build(Case(12, 3, 2, dtype=torch.float64), DEVICE)
    x = inputs.x.reshape(4, 3, 3)
    w = torch.rand(4, 3, dtype=torch.float64, device=DEVICE)
    with use_backend(backend):
        got = F.basis_gram(x, inputs.grid, 3, row_weight=w)
        want = F.basis_gram(inputs.x, inputs.grid, 3, row_weight=w.reshape(12, 1).expand(12, 3))
        doubled = F.basis_gram(
            torch.cat([inputs.x] * 2), inputs.grid, 3, row_weight=torch.cat([w, w]).flatten()
        )
    assert torch.equal(got, want)
    torch.testing.assert_close(doubled, 2 * want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", REFERENCE_LONG)
@pytest.mark.parametrize("statistics", ["l1", "moments"])
def test_edge_statistics(backend: str, statistics: str) -> None:
    """Values and first gradients with respect to x and the weights, on the whole table."""
    for case in CASES:
        inputs = build(case, DEVICE)
        x, c, b = (None if t is None else t.detach().requires_grad_()
                   for t in (inputs.x, inputs.spline_weight, inputs.base_weight))  # fmt: skip
        gs = [g.to(DEVICE) for g in cotangents(torch.Size((case.in_features, case.out_features)))]
        with use_backend(backend), poisoned_memory():
            arguments = edges(inputs, spline_weight=c, base_weight=b)
            if statistics == "l1":
                results = [F.edge_l1(x, **arguments)]
                loss = (results[0] * gs[0]).sum()
            else:
                mean, std = F.edge_moments(x, **arguments, correction=0)
                results = [mean, std.square() + mean.square()]
                loss = (results[0] * gs[0] + results[1] * gs[1]).sum()
            grads = grad(loss, [t for t in (x, c, b) if t is not None])
        truths, true_grads, scales = dense_gradients(case, statistics)
        dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
        assert all(result.dtype == dtype for result in results)
        names = [statistics] * len(truths) + ["dx", "dc", "db"]
        for name, got, truth, scale in zip(
            names, [*results, *grads], truths + true_grads, scales, strict=False
        ):
            eps = torch.finfo(got.dtype).eps
            if name == "dx" and case.points == "nan" and statistics == "moments":
                continue  # one NaN makes a deviation NaN, and with it the gradients of all rows
            what = f"{case.name}: {name}"
            if statistics == "l1" and name in ("dx", "dc", "db"):
                kinks(case, got, truth, scale, eps, what)
            else:
                assert_sums(got, truth, scale, eps, what)


def kinks(case: Case, got: Tensor, truth: Tensor, scale: Tensor, eps: float, what: str) -> None:
    """`assert_sums`, with room for rows where phi is so near 0 that its sign is rounding."""
    inputs = build(case).to(torch.float64)
    phi = dense_edges(inputs.x, inputs.spline_weight, inputs.base_weight, inputs)
    near = (phi.abs() < 64 * torch.finfo(torch.float32).eps * phi.abs().amax(0)).double().mean().item()
    if case.dtype == torch.float64 or near == 0:
        return assert_sums(got, truth, scale, eps, what)
    assert_sums(got, truth, scale, max(eps, 4 * near), what)


def test_variance_of_constants(backend: str) -> None:
    """Edges that do not vary have deviation exactly 0 and a finite gradient, whatever their value."""
    inputs = build(Case(50, 3, 4, dtype=torch.float64), DEVICE)
    inputs.x[:, 0] = 0.3
    inputs.spline_weight[1], inputs.base_weight[1] = 0.0, 0.0
    c = inputs.spline_weight.requires_grad_()
    with use_backend(backend):
        mean, std = F.edge_moments(inputs.x, **edges(inputs))
        (dc,) = grad(std.sum(), c)
    assert (std[:2] == 0).all() and (std[2] > 0).all() and (mean[0] != 0).all()
    assert (dc[:2] == 0).all() and (dc[2] != 0).any() and dc.isfinite().all()


def test_against_pykan(backend: str) -> None:
    """Deviation and mean magnitude of every edge in real pykan layers."""
    for path in sorted(FIXTURES.glob("pykan_layer_*.npz")):
        meta, data = load(path.stem)
        p = {key.removeprefix("param:"): value for key, value in data.items() if key.startswith("param:")}
        c, b, grid = pykan(p, data)
        with use_backend(backend):
            options = {"spline_order": order_of(meta), "base_weight": b}
            l1 = F.edge_l1(data["x"], c, grid, **options)
            _, std = F.edge_moments(data["x"], c, grid, **options)
        torch.testing.assert_close(l1, data["postacts_abs_mean"].t(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(std, data["postacts_std"].t(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backend", REFERENCE_LONG)
@pytest.mark.parametrize("base", [None, "silu", "identity"])
def test_derivatives_of_any_order(backend: str, base: str | None) -> None:
    """gradcheck and gradgradcheck of every statistic with respect to x and the weights."""
    inputs = build(Case(4, 2, 2, 3, 3, dtype=torch.float64, points="inside", base=base), DEVICE)
    tensors = [t for t in (inputs.x, inputs.spline_weight, inputs.base_weight) if t is not None]
    tensors = [t.detach().requires_grad_() for t in tensors]

    def moments(x: Tensor, c: Tensor, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.edge_moments(x, **edges(inputs, spline_weight=c, base_weight=b))

    def l1(x: Tensor, c: Tensor, b: Tensor | None = None) -> Tensor:
        return F.edge_l1(x, **edges(inputs, spline_weight=c, base_weight=b))

    def gram(x: Tensor) -> Tensor:
        return F.basis_gram(x, inputs.grid, 3)

    with use_backend(backend):
        for function, arguments in ((moments, tensors), (l1, tensors), (gram, tensors[:1])):
            assert gradcheck(function, arguments)
            assert gradgradcheck(function, arguments)


@NATIVE
def test_same_bits_for_any_threads() -> None:
    """Results do not depend on the number of threads, with rows split and with features split."""
    for case in LARGE:
        inputs = build(case)
        runs = []
        for count in (1, 2, 5):
            with threads(count):
                x, c = inputs.x.detach().requires_grad_(), inputs.spline_weight.detach().requires_grad_()
                l1 = F.edge_l1(x, **edges(inputs, spline_weight=c))
                mean, std = F.edge_moments(x, **edges(inputs, spline_weight=c))
                cross = F.basis_gram(x, inputs.grid, case.order, other_grid=inputs.grid * 1.1)
                runs.append([l1, mean, std, cross, *grad((l1 + mean * std).sum(), [x, c])])
        for one, other in pairwise(runs):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), case.name


@NATIVE
def test_ops_are_proper_torch_ops() -> None:
    """Schema, fake kernel and dispatch of the five ops agree with what they compute."""
    for case in (
        Case(9, 3, 4, dtype=torch.float64),
        Case(9, 3, 4, base=None),
        Case(5, 2, 3, layout="sliced"),
    ):
        inputs = build(case)
        x, grid, w = inputs.x, inputs.grid.double(), torch.rand(case.batch, case.in_features)
        ops = torch.ops.kan_kernels
        band, border = ops.edge_gram(x, w, grid, 3, inputs.base)
        weights = (inputs.spline_weight, inputs.base_weight)
        g = torch.rand(case.in_features, case.out_features, dtype=x.dtype)
        calls = [
            (ops.edge_gram, (x, w, grid, 3, inputs.base)),
            (ops.edge_gram, (x, None, grid, 3, inputs.base)),
            (ops.edge_gram_grad_input, (x, w, grid, 3, inputs.base, band, border)),
            (ops.edge_cross_gram, (x, w, grid, 3, grid + 0.1, 3)),
            (ops.edge_l1, (x, *weights, inputs.grid, 3, inputs.base)),
            (ops.edge_moments, (x, *weights, grid, 3, inputs.base, 1)),
        ]
        mean, *saved = ops.edge_moments(x, *weights, grid, 3, inputs.base, 1)
        cotangents_of = (x, *weights, grid, 3, inputs.base, 1, mean, None, *saved)
        for need_x, need_weight in ((True, True), (True, False), (False, True)):
            arguments = (x, *weights, g, inputs.grid, 3, inputs.base, need_x, need_weight)
            calls.append((ops.edge_l1_backward, arguments))
            calls.append((ops.edge_moments_backward, (*cotangents_of, need_x, need_weight)))
        for op, arguments in calls:
            tests = ("test_schema", "test_faketensor")
            torch.library.opcheck(op, arguments, test_utils=tests)


@NATIVE
@pytest.mark.long
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lower_instruction_sets(isa: str) -> None:
    """The same tests on the kernels of older machines."""
    runnable = json.loads(
        child("import json, kan_kernels._C as c; print(json.dumps(c.build_info()['cpu_isas']))")
    )
    if isa not in runnable:
        pytest.skip(f"{isa} is not compiled in")
    run_tests(
        __file__,
        "native and (l1 or moments) and edge_statistics or native and basis_gram",
        {"KAN_KERNELS_CPU_ISA": isa, "KAN_TEST_BACKENDS": "native"},
    )


@pytest.mark.long
def test_compiled(backend: str) -> None:
    """Under torch.compile the statistics and their gradients are those of eager mode."""
    inputs = build(Case(20, 3, 4, dtype=torch.float64), DEVICE)

    def loss(c: Tensor) -> Tensor:
        mean, std = F.edge_moments(inputs.x, **edges(inputs, spline_weight=c))
        return (F.edge_l1(inputs.x, **edges(inputs, spline_weight=c)) + mean * std).sum()

    c = inputs.spline_weight.detach().requires_grad_()
    with use_backend(backend):
        want = grad(loss(c), c)[0]
        got = grad(torch.compile(loss, backend="aot_eager")(c), c)[0]
    torch.testing.assert_close(got, want)


def test_infinite_x(backend: str) -> None:
    """An infinite x is data: the L1 norm of its feature is inf or NaN, other features stay as they are."""
    inputs = build(Case(30, 3, 4, dtype=torch.float64), DEVICE)
    with use_backend(backend):
        before = F.edge_l1(inputs.x, **edges(inputs))
        inputs.x[7, 1] = torch.inf
        l1 = F.edge_l1(inputs.x, **edges(inputs))
        mean, std = F.edge_moments(inputs.x, **edges(inputs))
    assert not l1[1].isfinite().any() and not mean[1].isfinite().any() and not std[1].isfinite().any()
    assert torch.equal(l1[[0, 2]], before[[0, 2]]) and std[[0, 2]].isfinite().all()


def test_errors() -> None:
    """Each names its argument, what it got and what it wants."""
    inputs = build(Case(6, 3, 4, dtype=torch.float64))
    x, grid, arguments = inputs.x, inputs.grid, edges(inputs)
    unsorted = grid.flip(1)
    w = torch.ones(6, dtype=torch.float64)
    for error, match, call in (
        (ValueError, r"x: got 0 rows", lambda: F.edge_l1(x[:0], **arguments)),
        (ValueError, r"x: got 1 rows.*at least 2", lambda: F.edge_moments(x[:1], **arguments)),
        (ValueError, r"x: got shape \(6, 2\)", lambda: F.edge_l1(x[:, :2], **arguments)),
        (TypeError, "x: got torch.float32", lambda: F.edge_l1(x.float(), **arguments)),
        (ValueError, "base_weight: got None", lambda: F.edge_l1(x, **{**arguments, "base_weight": None})),
        (ValueError, "base: unknown", lambda: F.edge_moments(x, **{**arguments, "base": "relu"})),
        (ValueError, "correction: got -1", lambda: F.edge_moments(x, **arguments, correction=-1)),
        (ValueError, "grid: knot 1", lambda: F.edge_l1(x, **{**arguments, "grid": unsorted})),
        (ValueError, "grid: knot 1", lambda: F.basis_gram(x, unsorted, 3)),
        (ValueError, "other_grid: knot 1", lambda: F.basis_gram(x, grid, 3, other_grid=unsorted)),
        (ValueError, "other_grid: got 3 knots", lambda: F.basis_gram(x, grid, 3, other_grid=grid[:, :3])),
        (ValueError, "other_order: got 2", lambda: F.basis_gram(x, grid, 3, other_order=2)),
        (ValueError, "other_order: got 11", lambda: F.basis_gram(x, grid, 3, other_grid=grid,
        other_order=11)), (ValueError, r"x: got shape \(6, 2\)", lambda: F.basis_gram(x[:, :2], grid, 3)),
        (TypeError, "x: got list", lambda: F.basis_gram([1.0], grid, 3)),
        (ValueError, r"row_weight: got shape \(5,\)", lambda: F.basis_gram(x, grid, 3, row_weight=w[:5])),
        (ValueError, "row_weight: requires grad",
         lambda: F.basis_gram(x, grid, 3, row_weight=w.clone().requires_grad_())),
        (TypeError, "row_weight: got float", lambda: F.basis_gram(x, grid, 3, row_weight=1.0)),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            call()


def test_no_rows(backend: str) -> None:
    """The sum over no rows is zero."""
    inputs = build(Case(6, 3, 4), DEVICE)
    with use_backend(backend):
        assert (F.basis_gram(inputs.x[:0], inputs.grid, 3) == 0).all()
        assert (F.basis_gram(inputs.x[:0], inputs.grid, 3, other_grid=inputs.grid) == 0).all()


def test_every_backend_was_meant() -> None:
    """The fixtures of pykan are here, and so is each backend."""
    assert "reference" in BACKENDS and len(CASES) > 100
    assert np.all([case.batch > 1 for case in CASES])
