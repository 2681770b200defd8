"""The source distribution has all that the build reads, and nothing of tests, benchmarks or examples."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ("kan_kernels", "csrc", "python")  # whole folders
FILES = (
    *("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"),
    "tools/build_needs.py",
)


def sources(folder: Path) -> set[str]:
    kinds = {".py", ".typed", ".h", ".cpp", ".cu", ".cuh"}
    return {
        str(path.relative_to(folder))
        for name in BUILT
        for path in (folder / name).rglob("*")
        if path.suffix in kinds or path.name == "py.typed"
    }


def test_has_what_the_build_reads(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "tools").mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    for name in BUILT:
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_x.py").touch()
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path / "dist")]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert sources(ROOT) <= names and {*FILES} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples"))]
