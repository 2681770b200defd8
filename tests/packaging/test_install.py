"""Where the package cannot be built or imported, one sentence says what to install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from kan_kernels._core import bases
from tools import build_needs

ROOT = Path(__file__).resolve().parents[2]
BUILD = ["--quiet", "build_ext", "--inplace"]


def python(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a child Python with these variables over a bare environment."""
    env = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


def program(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def pretend_package(folder: Path, name: str, version: str, code: str = "") -> Path:
    """Put a package of that version into a folder, for the front of PYTHONPATH."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f'__version__ = "{version}"\n{code}')
    (folder / f"{name}-{version}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clone, as far as the build looks before it compiles."""
    copy = tmp_path / "clone"
    (copy / "tools").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "tools/build_needs.py"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def one_sentence(run: subprocess.CompletedProcess[str]) -> str:
    """Assert that the run failed with one line, and return it."""
    assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
    return run.stderr


def test_old_setuptools(tree: Path, tmp_path: Path) -> None:
    """It cannot read pyproject.toml, so the sentence comes first, for every command and for pip's hooks."""
    fail = "def setup(**_): raise ValueError('invalid pyproject.toml config')\nclass Extension: pass\n"
    old = pretend_package(tmp_path / "old", "setuptools", "65.5.0", fail)
    (old / "setuptools" / "command").mkdir()
    (old / "setuptools" / "command" / "build_ext.py").write_text("build_ext = object\n")
    for command in (BUILD, ["--quiet", "egg_info"], ["--quiet", "sdist"]):
        said = one_sentence(python(["setup.py", *command], tree, PYTHONPATH=str(old)))
        assert "setuptools>=77 (this is 65.5.0)" in said and "pip install 'setuptools>=77'" in said


def test_bare_python(tree: Path) -> None:
    """Without site-packages there is not even setuptools to import."""
    said = one_sentence(python(["-S", "setup.py", *BUILD], tree))
    for part in ("setuptools>=77 (none here)", "torch>=2.11 (none here)", "pybind11>=2.13 (none here)"):
        assert part in said, said


def test_no_compiler_and_no_cmake(tree: Path, tmp_path: Path) -> None:
    """All that is missing is in one sentence; what pip can install is in a command to paste."""
    empty = tmp_path / "empty"
    empty.mkdir()
    program(empty / "cmake", "exit 127\n")  # the shim of a version manager: on PATH, but nothing behind it
    lacks = f"import sysconfig; sysconfig.get_path = lambda name: {str(tmp_path)!r}"
    run = f"import runpy, sys; sys.argv = ['setup.py', 'build_ext']; {lacks}; runpy.run_path('setup.py')"
    said = one_sentence(python(["-c", run], tree, PATH=str(empty)))
    for part in ("cmake>=3.22 (none here)", "ninja (none here)", "C++17 compiler", "g++", "python3-dev"):
        assert part in said, said
    assert said.rstrip().endswith("python -m pip install 'cmake>=3.22' ninja"), said


def test_sdist_needs_no_compiler(tree: Path, tmp_path: Path) -> None:
    """Metadata and source archives are made anywhere."""
    for name in re.findall(
        r'^  "(kan_kernels[.\w]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    ):
        (tree / name.replace(".", "/")).mkdir(exist_ok=True)
    run = python(["setup.py", "--quiet", "egg_info"], tree, PATH=str(tmp_path))
    assert run.returncode == 0, run.stderr


def test_local_version(tree: Path) -> None:
    """KAN_KERNELS_LOCAL_VERSION is in the metadata, or refused in a sentence."""
    for name in re.findall(
        r'^  "(kan_kernels[.\w]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    ):
        (tree / name.replace(".", "/")).mkdir(exist_ok=True)
    run = python(["setup.py", "--quiet", "egg_info"], tree, KAN_KERNELS_LOCAL_VERSION="cu130")
    assert run.returncode == 0, run.stderr
    metadata = (tree / "kan_kernels.egg-info" / "PKG-INFO").read_text()
    assert re.search(r"^Version: \d+\.\d+\.\d+\+cu130$", metadata, re.MULTILINE)
    said = one_sentence(python(["setup.py", "egg_info"], tree, KAN_KERNELS_LOCAL_VERSION="CU 13"))
    assert "KAN_KERNELS_LOCAL_VERSION: got 'CU 13'" in said


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(sys, "version", "3.9.18 (main)")
    said = build_needs.sentence(build_needs.lacking())
    assert said == "kan_kernels cannot be built without Python>=3.10 (this is 3.9.18)"


def test_old_torch_at_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.9 is older than 2.11, and 2.11.0a0 of a container is not."""
    monkeypatch.setattr(build_needs.metadata, "version", {"torch": "2.9.1+cpu"}.get)
    assert build_needs.lacking()["torch>=2.11"] == "this is 2.9.1+cpu"
    monkeypatch.setattr(build_needs.metadata, "version", {"torch": "2.11.0a0+nv26"}.get)
    assert "torch>=2.11" not in build_needs.lacking()


def test_nothing_is_lacking() -> None:
    """Where this test-suite runs, the package can be built: the checks find what is there."""
    assert build_needs.lacking() == {}
    assert build_needs.search_path().endswith(os.pathsep + sysconfig.get_path("scripts"))


def test_failed_compilation_is_no_traceback(tree: Path, tmp_path: Path) -> None:
    """The compiler's own message, then a sentence; what an earlier build remembered is forgotten before."""
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools / "cmake", 'test "$1" = --version && echo 3.30 && exit 0\necho "no such header"; exit 3\n')
    cache = tree / "build" / f"cmake-{sys.implementation.cache_tag}" / "CMakeCache.txt"
    cache.parent.mkdir(parents=True)
    cache.write_text("KAN_LIBTORCH:FILEPATH=/tmp/pip-build-env-of-yesterday/libtorch_cpu.so")
    run = python(["setup.py", *BUILD], tree, PATH=f"{tools}:{os.environ['PATH']}")
    assert "no such header" in run.stdout
    assert "kan_kernels was not built: `cmake -S ...` says why above" in one_sentence(run)
    assert not cache.exists()


def test_old_torch_at_import(tmp_path: Path) -> None:
    old = pretend_package(tmp_path / "old", "torch", "2.10.0+cu128")
    run = python(["-c", "import kan_kernels"], tmp_path, PYTHONPATH=f"{old}:{ROOT}")
    assert run.stderr.splitlines()[-1] == (
        "ImportError: kan_kernels needs torch >= 2.11; this is 2.10.0+cu128"
    )


def test_old_python_at_import(tmp_path: Path) -> None:
    code = "import sys; sys.version_info, sys.version = (3, 9, 18), '3.9.18 (main)'; import kan_kernels"
    run = python(["-c", code], tmp_path, PYTHONPATH=str(ROOT))
    assert run.stderr.splitlines()[-1] == "ImportError: kan_kernels needs Python >= 3.10; this is 3.9.18"


def test_least_torch_is_one_number() -> None:
    """pyproject.toml twice, the stable ABI that the library asks for, the import and the README agree."""
    least = ".".join(map(str, bases.MIN_TORCH))
    assert (ROOT / "pyproject.toml").read_text().count(f'"torch>={least}"') == 2
    (target,) = re.findall(
        r"TORCH_TARGET_VERSION=0x(\w\w)(\w\w)0{12}\b", (ROOT / "CMakeLists.txt").read_text()
    )
    assert tuple(int(part, 16) for part in target) == bases.MIN_TORCH
    assert f"torch ≥ {least}" in (ROOT / "README.md").read_text()


UNBUILT = """
import warnings
import torch, kan_kernels
from kan_kernels._core import library
assert "\\n" not in library.LOAD_ERROR, library.LOAD_ERROR
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    kan_kernels.KAN([2, 3, 1])(torch.rand(4, 2))
assert library.LOAD_ERROR in str(caught[0].message), caught
try:
    kan_kernels.to_numpy_model(kan_kernels.KAN([2, 1]))
except ImportError as error:
    print(error)
print(library.LOAD_ERROR)
"""


@pytest.mark.parametrize("library", [None, "garbage", "another"])
def test_not_built(library: str | None, tmp_path: Path) -> None:
    """A tree without its libraries, or with others, runs in plain torch, and says once what to do."""
    package = tmp_path / "kan_kernels"
    (package / "lib").mkdir(parents=True)
    for path in (ROOT / "kan_kernels").iterdir():
        if path.name not in ("lib", "__pycache__") and path.suffix != ".so":
            (package / path.name).symlink_to(path)
    if library == "garbage":
        (package / "lib" / "libkan_kernels.so").write_text("a pointer of a large-file store")
    if library == "another":  # loads, but has none of the ops, as one that was built from older sources
        import _ctypes

        shutil.copy(_ctypes.__file__, package / "lib" / "libkan_kernels.so")
    run = python(["-c", UNBUILT], tmp_path, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert run.returncode == 0, run.stderr
    numpy_model, torch_library = run.stdout.splitlines()
    assert numpy_model.endswith(bases.REMEDY) and torch_library.endswith(bases.REMEDY)
    assert ("does not exist" if library is None else "does not fit") in torch_library
