"""The CUDA kernels of Gaussians and Chebyshev polynomials on the CPU, as test_cuda_host.py runs those of
splines: against float64, with threads in either order, under sanitizers.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import bases
import cuda_host
from basis_cases import LAYOUTS, as_function, case, laid_out, tensors
from basis_cases import TABLE as ALL
from cases import HALF, OPS, Case, build
from cuda_host import sanitize
from cuda_host.checks import check_dense, dense_runs
from golden import check_peer
from harness import bits, check_op, run_op, threads
from kan_kernels._core.bases import BASES

NAMES = [name for name, basis in BASES.items() if basis.cuda and not basis.local]
TABLE = [c for c in ALL if c.basis in NAMES]
F32, F64 = torch.float32, torch.float64
BFLOAT, HALF_FLOAT = HALF

pytestmark = pytest.mark.skipif(cuda_host.why_not() is not None, reason=str(cuda_host.why_not()))


@pytest.fixture(scope="module", autouse=True)
def _backend() -> Iterator[None]:
    """The emulated kernels as a backend of that name, while this module's tests run; torch on one thread."""
    with cuda_host.registered(), threads(1):
        yield


def _edges() -> list[Case]:
    """Shapes that take branches which the shared table does not."""
    cases = []
    for basis in NAMES:
        inside = {"points": "inside"}
        for m in range(5):  # a tile of several inputs, and an input of several tiles
            cases.append(case(basis, 9, 21, 5, 20, derivative=m, side=m % 2 == 1, **inside))
            cases.append(case(basis, 70, 21, 3, 5, derivative=m, dtype=F64, base=None, **inside))
        cases += [
            case(basis, 256, 33, 2, 5, side=True, **inside),
            case(basis, 256, 17, 1, 70, dtype=F64, **inside),
            case(basis, 32, 40, 3, 18, **inside),  # as many as a tile holds, and one more with the base
            case(basis, 64, 40, 3, 18, base=None, **inside),
            case(basis, 5, 9, 150, 20, side=True, **inside),  # inputs in parts
            case(basis, 5, 5000, 2, 17, side=True, **inside),  # rows in parts
            case(basis, 70, 4100, 1, 3, points="nan"),  # and an input's gradient in parts
            case(basis, 8, 70, 5, 130, points="nan", base=None),  # a kernel for each gradient
            case(basis, 8, 1, 1, 1, **inside),
        ]
    return cases


def _wide() -> list[Case]:
    """On matrix units: every width, tiles that end within a step of 16, several tiles of an input."""
    cases = []
    for basis in NAMES:
        cases += [
            case(basis, 9, 70, 5, 136, points="inside", side=True, dtype=BFLOAT),
            case(basis, 6, 140, 9, 100, points="nan", dtype=BFLOAT, x_dtype=F32),
            case(basis, 13, 33, 3, 40, points="knots", dtype=HALF_FLOAT),
            case(basis, 40, 70, 3, 17, points="inside", dtype=BFLOAT, derivative=2, base="identity"),
            case(basis, 70, 70, 2, 5, points="inside", dtype=HALF_FLOAT, side=True),
            case(basis, 5, 2100, 2, 12, points="inside", dtype=BFLOAT, base=None),
        ]
    return cases


EDGES, WIDE = _edges(), _wide()


@pytest.mark.parametrize("step", (5, pytest.param(1, marks=pytest.mark.long)))
@pytest.mark.parametrize("op", OPS)
def test_op(op: str, step: int) -> None:
    """Every op on the shared cases, threads in either order; 16 bits with ordinary multiply-adds."""
    for n, c in enumerate(TABLE[::step]):
        with cuda_host.options(path="gather", mode=("rising", "falling")[n % 2]):
            check_op(cuda_host.NAME, op, c, build(c))


@pytest.mark.long
@pytest.mark.parametrize("op", OPS)
def test_edges(op: str) -> None:
    """Functions, inputs, rows and outputs beyond one tile; derivatives of every order."""
    for n, c in enumerate(EDGES):
        with cuda_host.options(mode=("rising", "falling")[n % 2]):
            check_op(cuda_host.NAME, op, c, build(c))


@pytest.mark.parametrize("mode", ("rising", pytest.param("falling", marks=pytest.mark.long)))
@pytest.mark.parametrize("op", OPS)
def test_matrix_units(op: str, mode: str) -> None:
    """16-bit operands."""
    cases = [c for c in [*TABLE, *WIDE] if c.dtype in HALF and dense_runs(op, c)]
    assert len(cases) > 20
    with cuda_host.options(path="dense", mode=mode):
        for c in cases:
            check_dense(op, c, False)


def test_who_takes_matrix_units() -> None:
    """All that can, without being asked; who asks in vain is told."""
    for c in (case("rbf", 8), case("rbf", 8, dtype=F64), case("rbf", 8, dtype=HALF_FLOAT, derivative=2)):
        with cuda_host.options(path="dense"), pytest.raises(RuntimeError):
            run_op(cuda_host.NAME, "forward", build(c))
    inputs = build(WIDE[0])
    results = []
    for path in ("auto", "dense", "gather"):
        with cuda_host.options(path=path):
            results.append(run_op(cuda_host.NAME, "forward", inputs)[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("basis", NAMES)
def test_weights_as_they_lie(basis: str, layout: str) -> None:
    """Weights that keep the functions of an edge together: the same bits, gradients of that layout."""
    for dtype, sizes in (
        (F32, (5, 9, 3, 20)),
        (F64, (70, 9, 3, 4)),
        (F32, (9, 2200, 2, 70)),
        (BFLOAT, (5, 9, 3, 20)),
    ):
        functions, *shape = sizes
        inputs = build(case(basis, functions, *shape, points="inside", dtype=dtype))
        plain = {op: run_op(cuda_host.NAME, op, inputs) for op in OPS}
        inputs.spline_weight = weight = laid_out(inputs.spline_weight, layout)
        for op in OPS:
            for a, b in zip(run_op(cuda_host.NAME, op, inputs), plain[op], strict=True):
                assert torch.equal(bits(a.contiguous()), bits(b)), op
        gradient = run_op(cuda_host.NAME, "backward", inputs)[1]
        alone = cuda_host.kan_linear_grad_weight(*inputs.args("weight"), weight)[0]
        assert torch.equal(bits(alone.contiguous()), bits(plain["weight"][0]))
        wanted = gradient.contiguous().stride() if dtype == BFLOAT else weight.stride()
        assert gradient.stride() == alone.stride() == wanted


@pytest.mark.parametrize("basis", NAMES)
def test_one_pass_is_two(basis: str) -> None:
    """The gradients of one pass are those of a pass each, to the bit."""
    for c in (
        case(basis, 9, 100, 9, 40, points="nan"),
        case(basis, 70, 40, 2, 9, points="inside", dtype=F64),
        case(basis, 9, 100, 9, 120, points="inside", dtype=BFLOAT),
    ):
        inputs = build(c)
        together = run_op(cuda_host.NAME, "backward", inputs)
        alone = run_op(cuda_host.NAME, "weight", inputs)
        inputs.derivative += 1
        apart = run_op(cuda_host.NAME, "input", inputs) + alone
        for a, b in zip(together, apart, strict=True):
            assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("c", [EDGES[-5], EDGES[-4], EDGES[-3], *WIDE[:2]], ids=lambda c: c.name)
def test_same_bits(c: Case) -> None:
    """The order in which threads run changes no bit."""
    for op in OPS:
        inputs, results = build(c), []
        for mode in ("rising", "falling"):
            with cuda_host.options(mode=mode):
                results.append(run_op(cuda_host.NAME, op, inputs))
        for a, b in zip(*results, strict=True):
            assert torch.equal(bits(a), bits(b)), op


@pytest.mark.parametrize("base", (None, "silu"))
@pytest.mark.parametrize("basis", NAMES)
def test_gradients(basis: str, base: str | None) -> None:
    """First and second derivatives with respect to every tensor, along random directions."""
    function, leaves = as_function(tensors(basis, 5, base), basis=basis, base=base, backend=cuda_host.NAME)
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ("fast_kan", "cheby_kan"))
def test_golden_numbers(name: str) -> None:
    """The peers' golden numbers: y, every gradient, the second order."""
    check_peer(cuda_host.NAME, name)


def test_no_outputs() -> None:
    """Nothing to make: empty results, and an input's gradient of zeros."""
    for basis in NAMES:
        inputs = build(case(basis, 5, 7, 3, 0, points="inside"))
        results = {op: run_op(cuda_host.NAME, op, inputs) for op in OPS}
        assert results["forward"][0].shape == (7, 0) and results["weight"][0].shape == (3, 5, 0)
        for op in ("input", "backward"):
            assert torch.equal(results[op][0], torch.zeros(7, 3))


def test_a_basis_without_kernels() -> None:
    """Is refused, not taken for another."""
    inputs = build(case("rbf", 5))
    for inputs.basis in (bases.CODES["fourier"], max(bases.CODES.values()) + 1):
        with pytest.raises(RuntimeError):
            run_op(cuda_host.NAME, "forward", inputs)


@pytest.mark.long
@pytest.mark.parametrize("kind", ("address", "thread"))
def test_sanitizers(kind: str) -> None:
    """With operating-system threads for its own, under ASan and UBSan, and under TSan."""
    sanitize.run(kind, sanitize.CASES["global"], "global")
