"""The build of the CUDA kernels under other versions of nvcc than the one here, and `make` on other machines.

A stand-in says another version, knows that version's architectures, refuses all others as nvcc does, and
leaves the rest to the real one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc for the stand-in to leave work to")
OLD = "50 52 53 60 61 62 70 72 75 80 86 87 89 90"
KNOWN = {  # nvcc --list-gpu-code of each version
    "11.8": OLD,
    "12.0": "",  # refuses everything, as where the host's compiler is too new for it
    "12.1": OLD,
    "12.8": f"{OLD} 100 101 120",
    "12.9": f"{OLD} 100 101 103 120 121",
    "13.0": "75 80 86 87 88 89 90 100 103 110 120 121",
}
STAND_IN = """#!{python}
import os, re, sys
known = {known!r}.split()
if "--version" in sys.argv:
    print("nvcc: NVIDIA (R) Cuda compiler driver\\nCuda compilation tools, release {version}, V{version}.1")
elif "--list-gpu-code" in sys.argv:
    print("\\n".join("sm_" + number for number in known))
else:
    for number in re.findall(r"(?:compute|sm)_([0-9]+)", " ".join(sys.argv)) or [""]:
        if number not in known and (number or not known):
            sys.exit("nvcc fatal   : Unsupported gpu architecture 'compute_" + number + "'")
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
"""


def stand_in(folder: Path, version: str) -> Path:
    """An nvcc of another version."""
    path = folder / "nvcc"
    path.write_text(
        STAND_IN.format(python=sys.executable, known=KNOWN[version], version=version, real=str(NVCC))
    )
    path.chmod(0o755)
    return path


def configure(
    folder: Path, nvcc: Path, archs: str = "", cuda: str = "auto", *more: str
) -> subprocess.CompletedProcess:
    """CMake alone, as setup.py calls it."""
    command = [
        *("cmake", "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DTORCH_CUDA_ARCH_LIST={archs}",
        f"-DKAN_KERNELS_CUDA={cuda}",
        *more,
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "CUDACXX": str(nvcc), "PATH": path}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def built_for(folder: Path) -> str | None:
    """What the library will say that it holds; None without CUDA kernels."""
    found = re.search(r'KAN_CUDA_ARCHITECTURES=[\\"]+([^"\\]*)', (folder / "build/build.ninja").read_text())
    return found and found[1]


@needs_nvcc
@pytest.mark.long
@pytest.mark.parametrize(
    "version,wanted",
    [
        ("12.1", "80-real 86-real 89-real 90-real 80-virtual 90-virtual"),
        ("13.0", "80-real 86-real 89-real 90-real 100-real 120-real 80-virtual 120-virtual"),
    ],
)
def test_the_default_is_what_this_nvcc_knows(tmp_path: Path, version: str, wanted: str) -> None:
    """Machine code for every card that it can, PTX of the oldest and of the newest; and nvcc takes it."""
    done = configure(tmp_path, stand_in(tmp_path, version))
    assert done.returncode == 0, done.stderr
    assert built_for(tmp_path) == wanted
    ninja = (tmp_path / "build/build.ninja").read_text()
    flags = {line for line in ninja.splitlines() if "--generate-code" in line}
    made = {"-".join(pair) for line in flags for pair in re.findall(r"code=\[(compute|sm)_(\d+)\]", line)}
    expected = {re.sub(r"(\d+)-(\w+)", r"\2-\1", word) for word in wanted.split()}
    assert {name.replace("sm", "real").replace("compute", "virtual") for name in made} == expected
    assert "-compress" in ninja  # machine code too, not PTX alone
    assert "-Werror" not in ninja  # no warning of a newer compiler breaks an installation
    if version == "12.1":
        target = "CMakeFiles/kan_cuda.dir/csrc/cuda/cost.cu.o"
        compiled = subprocess.run(
            ["ninja", "-C", str(tmp_path / "build"), target], capture_output=True, text=True, timeout=300
        )
        assert compiled.returncode == 0, compiled.stdout


@needs_nvcc
@pytest.mark.long
@pytest.mark.parametrize(
    "version,asked,wanted,said",
    [
        ("12.9", "8.0;9.0a 10.0f+PTX", "80-real 90-real 100-real 100-virtual", ""),
        ("12.1", "8.6 12.0", "86-real 90-virtual", "does not know 12.0"),  # a card that nvcc is too old for
        (
            "13.0",
            "5.2 7.5 8.0 8.6+PTX",
            "80-real 86-real 86-virtual",
            "7.5 of TORCH_CUDA_ARCH_LIST is left out",
        ),
        ("13.0", "7.5", None, "names no architecture from 8.0 on"),
        ("11.8", "", None, "need nvcc 12.1 or newer"),
    ],
)
def test_what_was_asked_for(tmp_path: Path, version: str, asked: str, wanted: str | None, said: str) -> None:
    """TORCH_CUDA_ARCH_LIST as the environment has it for other packages too: no installation fails on it."""
    done = configure(tmp_path, stand_in(tmp_path, version), asked)
    assert done.returncode == 0, done.stderr
    assert built_for(tmp_path) == wanted
    warning = " ".join(done.stderr.split())
    assert said in warning and bool(said) == ("kan_kernels:" in warning)


@needs_nvcc
@pytest.mark.long
def test_a_broken_nvcc_is_named(tmp_path: Path) -> None:
    """One that cannot compile here is left out of the build, and not in silence."""
    done = configure(tmp_path, stand_in(tmp_path, "12.0"))
    assert done.returncode == 0 and built_for(tmp_path) is None, done.stderr
    said = " ".join(done.stderr.split())
    assert "nvcc does not compile" in said and "CUDAHOSTCXX" in said


@needs_nvcc
@pytest.mark.long
def test_insisting(tmp_path: Path) -> None:
    """KAN_KERNELS_CUDA=1 says why not; an nvcc that comes later is found in the same folder."""
    missing = configure(tmp_path, tmp_path / "no-nvcc", cuda="1")
    assert missing.returncode != 0 and "put it on PATH or set CUDACXX" in " ".join(missing.stderr.split())
    assert configure(tmp_path, tmp_path / "no-nvcc").returncode == 0 and built_for(tmp_path) is None
    old = configure(tmp_path, stand_in(tmp_path, "11.8"), cuda="1")
    assert old.returncode != 0 and "12.1 or newer" in " ".join(old.stderr.split())
    shutil.rmtree(tmp_path / "build")
    assert configure(tmp_path, tmp_path / "no-nvcc").returncode == 0 and built_for(tmp_path) is None
    werror = "-DKAN_KERNELS_WERROR=1"
    later = configure(tmp_path, stand_in(tmp_path, "13.0"), "9.0", "1", werror)
    assert later.returncode == 0 and built_for(tmp_path) == "90-real", later.stderr
    ninja = (tmp_path / "build/build.ninja").read_text()
    assert "-Werror=all-warnings" in ninja and "-Wextra,-Werror," in ninja
    wrong = configure(tmp_path, stand_in(tmp_path, "13.0"), "Hopper")
    assert wrong.returncode != 0 and 'got "Hopper"' in " ".join(wrong.stderr.split())


CARDS = """#!/bin/sh
[ "$1" = --query-gpu=compute_cap ] || exit 2
{answer}
"""
TOOL = """#!/bin/sh
echo "arch=$TORCH_CUDA_ARCH_LIST" "cuda=$KAN_KERNELS_CUDA" "werror=$KAN_KERNELS_WERROR" "$@"
"""


def built_by_make(folder: Path, target: str, answer: str, **env: str) -> str:
    """What setup.py is called with by a target of the Makefile, where nvidia-smi gives this answer."""
    tools = folder / "venv" / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    for stamp in (".tools", ".ready"):
        (folder / "venv" / stamp).touch()
    scripts = {tools / name: TOOL for name in ("python", "ruff", "clang-format", "mypy")}
    scripts[folder / "nvidia-smi"] = CARDS.format(answer=answer)
    for path, text in scripts.items():
        path.write_text(text)
        path.chmod(0o755)
    venv = [f"VENV={folder / 'venv'}", f"BIN={tools}", f"PYTHON={sys.executable}"]
    done = subprocess.run(
        ["make", "--no-print-directory", "-s", "-C", str(ROOT), target, *venv],
        env={"PATH": os.pathsep.join([str(folder), "/usr/local/bin:/usr/bin:/bin"]), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for stamp in (folder / "venv").glob(".built*"):
        stamp.unlink()
    return next(line for line in done.stdout.splitlines() if "build_ext" in line)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    "answer,arch,cuda",
    [
        ("echo 8.6", "8.6", "auto"),
        ("echo 12.0; echo 8.9; echo 8.9", "8.9;12.0", "auto"),
        ("echo 7.5; echo 8.0", "8.0", "auto"),
        ("echo 7.5", "9.0", "0"),  # no kernel runs there: one architecture, for what is tested without a GPU
        ("echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2", "9.0", "0"),
        ("exit 9", "9.0", "0"),
    ],
)
def test_make_builds_for_the_cards_that_are_there(tmp_path: Path, answer: str, arch: str, cuda: str) -> None:
    """`make build` is for the cards or one architecture, `make demo` asks for a card; what is named wins."""
    assert f"arch={arch} cuda= werror= setup.py" in built_by_make(tmp_path, "build", answer)
    assert f"arch={arch} cuda={cuda} werror= setup.py" in built_by_make(tmp_path, "demo", answer)
    named = {"TORCH_CUDA_ARCH_LIST": "8.7+PTX", "KAN_KERNELS_CUDA": "1"}
    assert "arch=8.7+PTX cuda=1 werror= setup.py" in built_by_make(tmp_path, "demo", answer, **named)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_our_own_checks_stop_at_a_warning(tmp_path: Path) -> None:
    """`make check` builds with warnings as errors; a user's build never does."""
    assert "cuda= werror=1 setup.py" in built_by_make(tmp_path, "check", "exit 9")
