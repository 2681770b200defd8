"""What the tests share: which backends to test, their four ops, memory poison, and the tolerance with its
origin.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kan_kernels
import oracle
from cases import HALF, OPS, Case, Inputs

PROJECT = Path(__file__).resolve().parents[2]
ROOT = Path(kan_kernels.__file__).resolve().parents[1]  # the folder to put on sys.path for a child process
# A backend named here must run: the suite fails, it does not skip, where one cannot.
BACKENDS = tuple(os.environ.get("KAN_TEST_BACKENDS", "reference,native").split(","))
FUSED = tuple(name for name in BACKENDS if name != "reference")
# where the plain reference takes seconds, `make test-all` runs it
REFERENCE_LONG = [pytest.param(name, marks=[pytest.mark.long] * (name == "reference")) for name in BACKENDS]
DEVICE = os.environ.get("KAN_TEST_DEVICE", "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels run in its interpreter: slowly

# backends that round the basis to the operand's dtype
MATRIX_UNITS = ("triton", "native") if DEVICE == "cuda" else ("triton",)

# Few-eps floor: rounding errors, in units of eps times the sum of absolute values, that any order of
# summation and
# any stable basis evaluation may have: k steps of the triangle, the logistic function, and a short sum.
FLOOR = 8.0


def ops_of(backend: str) -> dict[str, Any]:
    """{op name: callable with the schema's arguments} of a backend that must be able to run here."""
    reason = kan_kernels.available_backends()[backend]
    assert reason is None, f"backend {backend} cannot run here: {reason}"
    module = importlib.import_module(f"kan_kernels.backends.{backend}")
    return {op: getattr(module, name) for op, name in OPS.items()}


def run_op(backend: str, op: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """The op's results, always as a tuple."""
    out = ops_of(backend)[op](*inputs.args(op))
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def expected_dtypes(op: str, case: Case) -> tuple[torch.dtype, ...]:
    """`input` has x's dtype, weight gradients have g's."""
    x_dtype = case.x_dtype or case.dtype
    return {
        "forward": (case.dtype,),
        "input": (x_dtype,),
        "weight": (case.dtype,) * 2,
        "backward": (x_dtype, case.dtype, case.dtype),
    }[op]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic is float32 for 16-bit storage and the storage's own otherwise."""
    return torch.float32 if dtype in HALF else dtype


def relative_error(got: Tensor, truth: Tensor, scale: Tensor) -> float:
    """Largest |got - truth| in units of `scale`, over the entries where truth is finite and scale is
    not 0.
    """
    use = truth.isfinite() & (scale > 0)
    error = (got.double() - truth).abs()[use] / scale[use]
    return float(error.max()) if error.numel() else 0.0


def assert_close(
    got: Tensor,
    truth: Tensor,
    scale: Tensor,
    plain: float,
    dtype: torch.dtype,
    what: str,
    terms: int = 0,
    operand_eps: float = 0.0,
    slack: Tensor | None = None,
) -> None:
    """|got - truth| <= (2 plain + (FLOOR + terms / 2) eps + operand_eps / 2) scale + slack, and one rounding
    if stored in 16 bits.

    plain: error of the same computation in plain torch of the compute dtype, in the same units (twice that
    error is allowed). terms: length of a sum of equal numbers, whose rounding errors do not cancel.
    operand_eps: of matrix operands that are rounded once more before they are multiplied. NaN and infinity
    must be where truth has them, and where scale and slack are 0 the result is exactly 0.
    """
    assert got.shape == truth.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    compute = torch.finfo(compute_dtype(dtype))
    value = got.double()
    # below the smallest normal number precision ends: 2^-126 in float32
    allowed = torch.where(
        scale == 0,
        0.0,
        (2.0 * plain + (FLOOR + terms / 2) * compute.eps + operand_eps / 2) * scale + compute.tiny,
    )
    if slack is not None:
        allowed = allowed + slack
    if dtype in HALF:
        info = torch.finfo(dtype)
        allowed = allowed + 0.505 * info.eps * truth.abs() + float(info.smallest_normal) * info.eps
    finite = truth.isfinite()
    bad = torch.where(
        finite, ~((value - truth).abs() <= allowed), ~((value == truth) | (value.isnan() & truth.isnan()))
    )
    if bool(bad.any()):
        at = tuple(int(n) for n in bad.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.numel()} entries are wrong; at {at}: got {float(value[at])}, "
            f"expected {float(truth[at])}, allowed error {float(allowed[at]):.3g}"
        )


def check_op(backend: str, op: str, case: Case, inputs: Inputs) -> None:
    """Run the op in poisoned memory and compare every entry with float64: the package's reference as the
    truth.
    """
    with poisoned_memory():
        got = run_op(backend, op, inputs)
    wide = inputs.to(torch.float64)
    narrow = inputs.to(compute_dtype(case.dtype))
    truth = oracle.run(op, wide) if backend == "reference" else run_op("reference", op, wide)
    # Where the truth has the compute dtype itself, the other float64 computation says how far two plain ones
    # differ.
    plain = oracle.run(op, wide) if case.dtype == torch.float64 else run_op("reference", op, narrow)
    scales = oracle.magnitude(op, wide)
    slacks = position_slack(backend, op, case, wide)
    names = {"forward": ["y"], "input": ["t"], "weight": ["d_spline", "d_base"]}.get(
        op, ["t", "d_spline", "d_base"]
    )
    assert len(got) == len(names)
    for name, value, want, true, scale, same, slack in zip(
        names, got, expected_dtypes(op, case), truth, scales, plain, slacks, strict=True
    ):
        what = f"{backend}.{op}[{case.name}].{name}"
        assert value.dtype == want, f"{what}: dtype {value.dtype}, expected {want}"
        followed = inputs.basis and name == "d_spline" and value.stride() == inputs.spline_weight.stride()
        assert value.is_contiguous() or followed, f"{what}: not contiguous"
        equal = case.layout == "expanded" and name.startswith("d_")
        terms = case.batch if equal else 0
        plain_error = relative_error(same, true, scale)
        assert_close(
            value.cpu(), true, scale, plain_error, want, what, terms, operand_eps(backend, name, case), slack
        )


def operand_eps(backend: str, result: str, case: Case) -> float:
    """Matrix units multiply 16-bit operands: there the basis is rounded to 16 bits, as the weights are."""
    if backend not in MATRIX_UNITS or not reduced(case):
        return 0.0
    if case.dtype in HALF:
        return 0.0 if result == "t" else float(torch.finfo(case.dtype).eps)
    return 4 * 2.0**-10  # TF32 has 10 bits after the point, and both operands may be cut instead of rounded


def position_slack(backend: str, op: str, case: Case, wide: Inputs) -> tuple[Tensor | None, ...]:
    """Beside operands of 8 to 11 bits, uniform knots are where arithmetic puts them, not where float32
    rounded them.

    That moves x by 2^-24 of the knots' range or so, and a basis by less than 2^-18 of its largest value.
    Of a Gaussian's tail float16 keeps multiples of 2^-24.
    """
    if backend in MATRIX_UNITS and case.basis == "rbf" and case.dtype == torch.float16:
        return tuple(2.0**-25 * scale for scale in oracle.magnitude(op, wide, anywhere=True))
    local = case.basis == "bspline" and case.knots in ("uniform", "ranges")
    if backend not in MATRIX_UNITS or not local or not reduced(case):
        return (None,) * {"forward": 1, "input": 1, "weight": 2, "backward": 3}[op]
    return tuple(2.0**-18 * scale for scale in oracle.magnitude(op, wide, anywhere=True))


def reduced(case: Case) -> bool:
    """Whether operands of matrix units have fewer bits than float32."""
    return case.dtype in HALF or (
        case.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    )


def bits(t: Tensor) -> Tensor:
    """The tensor as integers, so that NaN equals NaN and -0 differs from 0."""
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds garbage that no result survives: an entry that a kernel forgets to write is found.

    Tensors from torch's allocator are filled with NaN; on glibc every other block (scratch buffers, tensors
    from entry points that skip the filling) starts as bytes 0x7f: 3.4e38 in float32, 1.4e306 in float64.
    """
    deterministic: Any = torch.utils.deterministic
    was = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    if mallopt is not None:
        mallopt(-6, 0x80)  # M_PERTURB: fills with the complement
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(-6, 0)
        torch.use_deterministic_algorithms(was[0])
        deterministic.fill_uninitialized_memory = was[1]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's intra-op threads, restored at the end."""
    was = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(was)


def check_same_bits(results: Callable[[], Iterable[Tensor]]) -> None:
    """The same bits with 1, 2 and 3 threads as with the default number."""
    wanted = [bits(t) for t in results()]
    for count in (1, 2, 3):
        with threads(count):
            again = [bits(t) for t in results()]
        assert all(torch.equal(a, b) for a, b in zip(wanted, again, strict=True)), count


def paths(root: Path | None = None) -> str:
    """PYTHONPATH of a child process that can import this kan_kernels, or `root`'s, and the test helpers."""
    tests = Path(__file__).parents[1]
    return os.pathsep.join(map(str, (root or ROOT, tests, tests / "support")))


def child(code: str, env: dict[str, str] | None = None, root: Path | None = None, ok: bool = True) -> str:
    """Run Python code in a fresh process that can import this kan_kernels and the test helpers; its output.

    Raises AssertionError with the whole output if the exit status is not 0 (ok=True), or is 0 (ok=False).
    """
    full = {**os.environ, "PYTHONPATH": paths(root), **(env or {})}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=full, timeout=300, cwd=root or ROOT
    )
    assert (done.returncode == 0) is ok, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def run_tests(file: str, names: str, env: dict[str, str]) -> None:
    """Run the tests of a file whose names match, in a fresh process; raises if one fails or there is none."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-k", names, file]
    child(f"import pytest; raise SystemExit(pytest.main({options!r}))", env)


def run_benchmarks(*arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    """Run `python -m benchmarks` with these arguments, on this kan_kernels."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (PROJECT, ROOT)))},
    )


def run_example(name: str) -> dict[str, Any]:
    """The result of examples/<name>.py in its fast mode: one thread, and a RuntimeWarning is an error."""
    child(f"""
import runpy, sys, warnings
warnings.simplefilter("error", RuntimeWarning)
import torch
torch.set_num_threads(1)
sys.argv = ["{name}", "--fast"]
runpy.run_module("examples.{name}", run_name="__main__")
""")
    result: dict[str, Any] = json.loads((ROOT / "examples" / "results" / f"{name}.fast.json").read_text())
    return result


def available_memory() -> int:
    """Bytes that can be taken without swapping, or 0 if the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
