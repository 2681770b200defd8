"""Sines and cosines: how exact they are at any frequency and any x, and what is refused."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

import bases
from harness import FUSED, child
from kan_kernels import functional as F
from kan_kernels._core.problem import Problem
from kan_kernels.backends import native

F32, F64 = torch.float32, torch.float64
BACKENDS = ("reference", "native")


def functions(x: Tensor, frequencies: int, m: int = 0, backend: str | None = None) -> Tensor:
    """The m-th derivative of cos(g x), then of sin(g x), over g^m: (len(x), 2 G)."""
    identity = torch.eye(2 * frequencies, dtype=x.dtype)[None]
    y = F.basis_linear(x[:, None], identity, basis="fourier", derivative=m, backend=backend)
    return y / torch.arange(1, frequencies + 1, dtype=x.dtype).repeat(2) ** m


def exact(x: Tensor, frequencies: int) -> Tensor:
    """By mpmath, whose reduction has as many digits as x asks for."""
    with mpmath.workprec(600):
        rows = []
        for value in x.tolist():
            angles = [g * mpmath.mpf(value) for g in range(1, frequencies + 1)]
            rows.append([float(f(angle)) for f in (mpmath.cos, mpmath.sin) for angle in angles])
    return torch.tensor(rows, dtype=F64)


def spread(scale: float, dtype: torch.dtype, count: int = 12) -> Tensor:
    """Numbers of either sign up to `scale`."""
    u = torch.rand(count, generator=torch.Generator().manual_seed(3), dtype=F64)
    return (scale * (2 * u - 1)).to(dtype)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("frequencies", (1, 4, 5, 9, 13, 14, 128, 512))
@pytest.mark.parametrize("dtype", (F32, F64))
def test_errors_do_not_grow_with_frequency(dtype: torch.dtype, frequencies: int, name: str) -> None:
    """6 eps near 0 and over some periods: two points are rounded, and their product; g x would have 256."""
    eps = torch.finfo(dtype).eps
    g = torch.arange(1, frequencies + 1, dtype=F64).repeat(2)
    for scale in (1e-30, 1e-3, 1.0, 3.2, 50.0):
        x = spread(scale, dtype, 60)
        want = bases.values(
            bases.CODES["fourier"], x.double()[:, None], torch.empty(1, 0), 2 * frequencies, 0
        )[:, 0]
        got = functions(x, frequencies, backend=name).double()
        assert float((got - want).abs().max()) <= 6 * eps
        small = (g * x.double()[:, None]).abs() < 0.1  # there sines keep their relative precision
        small[:, :frequencies] = False
        assert bool(((got - want).abs() <= 6 * eps * want.abs())[small].all())


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("scale", (1.6e4, 1.7e4, 1e6, 1.6e7, 1.7e7, 1e9, 1e16, 1e20, 3e38))
def test_large_angles(scale: float, name: str) -> None:
    """Every x below 2^128 as exactly as small ones, at any frequency; in plain torch g x must be finite."""
    if name == "reference":
        scale = min(scale, 8e36)
    for dtype in (F32, F64):
        x = spread(scale, dtype)
        want, got = exact(x, 40), functions(x, 40, backend=name)
        assert float((got.double() - want).abs().max()) <= 6 * torch.finfo(dtype).eps, dtype


@pytest.mark.parametrize("name", BACKENDS)
def test_far_rows_leave_the_others_alone(name: str) -> None:
    """One large x, one NaN, in a block of rows: all others as without them, bit by bit."""
    x = spread(3.0, F32, 37)
    plain = functions(x, 9, backend=name)
    for value in (1e20, torch.nan, torch.inf):
        x[17] = value
        rows = functions(x, 9, backend=name)
        assert torch.equal(rows[:17], plain[:17]) and torch.equal(rows[18:], plain[18:])
        assert torch.equal(rows[17].isnan(), torch.full((18,), value != 1e20))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", (F32, F64))
def test_zero_and_no_number(dtype: torch.dtype, name: str) -> None:
    """cos is 1 and sin is 0 at 0, exactly, in every derivative; infinities and NaN give NaN in all."""
    x = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    for m in range(6):
        rows = functions(x, 11, m, name)
        value = torch.tensor([[1.0, 0.0, -1.0, 0.0][m % 4], [0.0, 1.0, 0.0, -1.0][m % 4]], dtype=dtype)
        assert torch.equal(rows[:2], value.repeat_interleave(11).expand(2, -1))
        assert rows[2:].isnan().all()
    if dtype == F64:  # whose phase the kernels do not have
        assert functions(torch.tensor([1e39, -1e300], dtype=F64), 3, backend=name).isnan().all()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("m", (1, 2, 3, 4, 7, 32))
def test_derivatives(m: int, name: str) -> None:
    """g^m and quarter turns, as exact as the functions but for the rounding of the power."""
    x = spread(20.0, F64, 40)
    want = bases.values(bases.CODES["fourier"], x[:, None], torch.empty(1, 0), 60, m)[:, 0]
    want = want / torch.arange(1, 31, dtype=F64).repeat(2) ** m
    torch.testing.assert_close(functions(x, 30, m, name), want, rtol=0, atol=(6 + m) * torch.finfo(F64).eps)


@pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")
@pytest.mark.long
@pytest.mark.parametrize("isa", ("baseline", "avx2"))
def test_other_instruction_sets(isa: str) -> None:
    """The same bounds without fused multiply-adds, and with narrower vectors."""
    code = f"""
import torch, runpy
from types import SimpleNamespace
from kan_kernels import _C
if {isa!r} in _C.build_info()["cpu_isas"]:
    t = SimpleNamespace(**runpy.run_path({__file__!r}))
    assert torch.ops.kan_kernels.cpu_isa() == {isa!r}
    for dtype in (t.F32, t.F64):
        for frequencies in (9, 512):
            t.test_errors_do_not_grow_with_frequency(dtype, frequencies, "native")
    for scale in (1e4, 1e9, 3e38):
        t.test_large_angles(scale, "native")
print("done")
"""
    env = {"KAN_KERNELS_CPU_ISA": isa, "KAN_TEST_BACKENDS": "native"}
    assert "done" in child(code, env)


def test_most_frequencies() -> None:
    """512 of them; more are refused, by the checks, by `can_run` and by the op itself."""
    x = torch.linspace(-3, 3, 5)[:, None]
    weight = torch.randn(1, 1024, 7, generator=torch.Generator().manual_seed(0))
    got, want = (F.basis_linear(x, weight, basis="fourier", backend=name) for name in ("native", "reference"))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"weight.shape\[1\]: got 1026, expected an int in 1..1024"):
        F.basis_linear(x, torch.ones(1, 1026, 2), basis="fourier")
    with pytest.raises(ValueError, match=r"got 3, expected an even number: cosines, then sines"):
        F.basis_linear(x, torch.ones(1, 3, 2), basis="fourier")
    with pytest.raises(ValueError, match="expected None: the basis 'fourier' has none"):
        F.basis_linear(x, torch.ones(1, 4, 2), torch.ones(1, 5), basis="fourier")
    assert native.can_run(Problem("cpu", F32, F32, 8, 8, 1024, basis="fourier")) is None
    more = Problem("cpu", F32, F32, 8, 8, 1026, basis="fourier")
    assert "1026 functions of the basis 'fourier' are more than 1024" in str(native.can_run(more))
    op, code = torch.ops.kan_kernels.kan_linear, bases.CODES["fourier"]
    for count, columns, message in (
        (0, 0, "functions"),
        (1026, 0, "functions"),
        (3, 0, "even"),
        (4, 3, "grid has 3 columns, expected 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(x, None, torch.ones(1, 4, 2), None, None, torch.ones(1, columns), count, 0, 0, 0, code)
