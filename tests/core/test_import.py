"""Importing kan_kernels is cheap and quiet; `python -m kan_kernels` says what works here."""

from __future__ import annotations

import pytest
import torch

import kan_kernels
from harness import BACKENDS, FUSED, ROOT, child

MODULE = "import runpy, sys; sys.argv = ['kan_kernels']; runpy.run_module('kan_kernels', run_name='__main__')"
NATIVE = pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")


def test_imports_no_science_library() -> None:
    """What torch itself does not import, kan_kernels does not either; no CUDA, no thread started, nothing
    printed.
    """
    text = child("""
import sys, torch, numpy, threading
before, threads = set(sys.modules), threading.active_count()
import kan_kernels
heavy = {"matplotlib", "scipy", "sympy", "sklearn", "pandas", "tqdm", "rich", "pybind11", "triton", "jax"}
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert not heavy & new, heavy & new
assert not torch.cuda.is_initialized() and threading.active_count() == threads
""")
    assert text == "", text


def test_changes_no_global_setting() -> None:
    """Importing leaves torch's settings alone."""
    child("""
import torch, warnings
def settings():
    return (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
            list(warnings.filters))
before = settings()
import kan_kernels
kan_kernels.KAN([2, 3, 1], 4)
assert settings() == before
""")


def test_public_names() -> None:
    """The names of the public contract; all exist."""
    from kan_kernels import KAN, KANLinear, available_backends, explain, use_backend  # noqa: F401
    from kan_kernels import functional as F

    for name in kan_kernels.__all__:
        assert hasattr(kan_kernels, name), name
    assert {"KAN", "KANLinear", "functional", "use_backend", "available_backends", "explain"} <= set(
        kan_kernels.__all__
    )
    assert callable(F.kan_linear) and callable(F.bspline_basis)
    assert kan_kernels.__version__.count(".") == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_is_available(backend: str) -> None:
    """Each backend under test can run here; a suite that silently tests nothing is worse than one that
    fails.
    """
    assert kan_kernels.available_backends()[backend] is None


@NATIVE
def test_module_report() -> None:
    """`python -m kan_kernels`: versions, the loaded libraries, the instruction set, each backend; exit status
    0.
    """
    text = child(MODULE.replace("runpy.run_module", "r = runpy.run_module"), ok=True)
    for part in (
        kan_kernels.__version__,
        torch.__version__,
        "libkan_kernels",
        torch.ops.kan_kernels.cpu_isa(),
        "_C",
    ):
        assert part in text, (part, text)
    for backend in kan_kernels.available_backends():
        assert backend in text
    assert "WRONG" not in text and "not loaded" not in text


@NATIVE
@pytest.mark.long  # make test has one instruction set
def test_module_report_follows_the_environment() -> None:
    """A lower instruction set that was asked for is the one that is shown."""
    text = child(MODULE, {"KAN_KERNELS_CPU_ISA": "baseline"})
    assert "run as baseline" in text or "cpu_isa: baseline" in text, text


def test_import_from_elsewhere(tmp_path: object) -> None:
    """The package does not depend on the working directory."""
    text = child(f"import os; os.chdir({str(tmp_path)!r}); import kan_kernels; print(kan_kernels.__file__)")
    assert str(ROOT) in text


def test_is_typed() -> None:
    """py.typed is shipped, so that users' type checkers see the annotations."""
    from pathlib import Path

    assert (Path(kan_kernels.__file__).parent / "py.typed").exists()


IMPORT = """
import time, numpy, torch
start = time.process_time()
import kan_kernels
print(time.process_time() - start)
"""


def test_import_is_quick() -> None:
    """At most 0.15 s of a core beyond torch's own import; once in three will do, for others may share it."""
    seconds: list[float] = []
    while len(seconds) < 3 and not (seconds and seconds[-1] <= 0.15):
        seconds.append(float(child(IMPORT)))
    assert min(seconds) <= 0.15, f"import kan_kernels took {seconds} s beyond torch"
