"""The CUDA kernels of polynomials by their recurrence, on the CPU, against plain loops in float64."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from scipy import special

import cuda_host
from cuda_host import sanitize
from cuda_host.orthogonal import BFLOAT, CODE, EXAMPLES, F64, ROUNDING, Example, check, grid_of, run, values
from harness import threads

pytestmark = pytest.mark.skipif(cuda_host.why_not() is not None, reason=str(cuda_host.why_not()))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield


SCIPY = {
    "legendre": special.legendre,
    "gegenbauer": lambda n: special.gegenbauer(n, 0.7),
    "hermite": special.hermitenorm,
    "laguerre": special.laguerre,
}


@pytest.mark.parametrize("family", SCIPY)
def test_the_oracle(family: str) -> None:
    """It is SciPy's, derivatives of all orders too."""
    x = torch.linspace(-1, 1, 7, dtype=F64).view(-1, 1)
    for m in (0, 1, 2, 5, 9):
        got = values(x, grid_of(family, 9)[None], 9, m)[:, 0]
        for n in range(9):
            want = Polynomial(SCIPY[family](n).coeffs[::-1]).deriv(m)(x[:, 0].numpy())
            np.testing.assert_allclose(got[:, n].numpy(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ("rising", "falling"))
def test_ops(mode: str) -> None:
    """All ops: tiles, parts, matrix units, derivatives that go along in registers and those that do not."""
    with cuda_host.options(mode=mode):
        for e in EXAMPLES:
            check(e)


def test_too_high_an_order_is_exactly_zero() -> None:
    """Beyond the degree nothing is left."""
    grid = grid_of("legendre", 5).repeat(2, 1)
    x, weight = torch.linspace(-1, 1, 14, dtype=F64).view(7, 2), torch.ones(2, 5, 3, dtype=F64)
    for m in (5, 6, 32):
        assert not cuda_host.kan_linear(x, None, weight, None, None, grid, 5, 0, 0, m, CODE).any()
    assert cuda_host.kan_linear(x, None, weight, None, None, grid, 5, 0, 0, 4, CODE).all()


@pytest.mark.long
@pytest.mark.parametrize("kind", ("address", "thread"))
def test_sanitizers(kind: str, tmp_path: Path) -> None:
    """Under ASan and UBSan, and with operating-system threads under TSan, the same bits as without."""
    examples = [Example(9, 40, 5, 20), Example(70, 9, 2, 5, 4, F64), Example(13, 70, 3, 136, dtype=BFLOAT)]
    expected = [run(e) for e in examples]
    calls, results = tmp_path / "calls", tmp_path / "results"
    try:
        cuda_host.runner = recorder = sanitize.Recorder()
        for e in examples:
            run(e)
        calls.write_bytes(recorder.data)
        program = sanitize.executable(kind)
        command = [str(program), str(calls), str(results), str(cuda_host.MODES["threads"])]
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
        assert done.returncode == 0, f"{kind}: {done.stderr[-4000:]}"
        cuda_host.runner = sanitize.Player(results.read_bytes())
        for e, wanted in zip(examples, expected, strict=True):
            for (what, got, want, scale), (_, before, *_) in zip(run(e), wanted, strict=True):
                assert not got.isnan().any(), what
                slack = ROUNDING[e.dtype] * (scale + want.abs()) * max(4, e.functions / 4)
                assert ((got - want).abs() <= slack).all(), f"{kind}: {e}: {what}"
                assert got.shape == before.shape
    finally:
        cuda_host.runner = None
