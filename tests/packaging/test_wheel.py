"""The wheel in dist/: complete, naming no path of its builder, and it runs from where it is unpacked."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEELS = sorted((ROOT / "dist").glob("kan_kernels-*.whl"))

pytestmark = pytest.mark.skipif(not WHEELS, reason="there is no wheel in dist/: `make wheel` builds it")

RUN = """
import pathlib, sys, torch, kan_kernels
from kan_kernels import KAN, _C, available_backends, to_numpy_model
home = pathlib.Path(sys.argv[1])
assert home in pathlib.Path(kan_kernels.__file__).parents, kan_kernels.__file__
assert available_backends()["native"] is None, available_backends()
model, x = KAN([3, 4, 2], backend="native"), torch.rand(5, 3)
model(x).sum().backward()
assert torch.allclose(torch.from_numpy(to_numpy_model(model)(x.numpy())), model(x), atol=1e-6)
print(kan_kernels.__version__, _C.build_info()["version"])
"""


def test_is_complete() -> None:
    """The typed marker, both libraries, the licence, every module, and nothing of tests or benchmarks."""
    names = set(zipfile.ZipFile(WHEELS[-1]).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "kan_kernels").rglob("*.py")}
    assert modules <= names
    assert {"kan_kernels/py.typed", "kan_kernels/lib/libkan_kernels.so"} <= names
    assert any(name.startswith("kan_kernels/_C.") for name in names)
    assert any(name.endswith("LICENSE") for name in names)
    assert not [
        name for name in names if name.startswith(("tests", "benchmarks", "csrc", "build", "examples"))
    ]


def test_holds_no_path_of_the_builder() -> None:
    """The libraries find torch in the process that loads them, not where it lay when they were built."""
    archive = zipfile.ZipFile(WHEELS[-1])
    for name in archive.namelist():
        if name.endswith(".so"):
            assert str(ROOT).encode() not in archive.read(name), name


def test_runs_from_anywhere(tmp_path: Path) -> None:
    """Unpacked into an empty folder, it is that copy which is imported, with its own native library."""
    zipfile.ZipFile(WHEELS[-1]).extractall(tmp_path)
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    run = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["0.1.0", "0.1.0"]
