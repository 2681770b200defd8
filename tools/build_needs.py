"""Say in one sentence what the build needs, which pyproject.toml says, and lacks here.

setup.py asks before setuptools reads pyproject.toml, which an old one cannot; `make gpu` before it builds.
"""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
PROGRAMS = {"cmake": ("cmake",), "ninja": ("ninja", "ninja-build", "samu")}
COMPILERS = ("c++", "g++", "clang++", "CC", "icpx")  # those that CMake looks for


def search_path() -> str:
    """Return PATH and, at its end, the folder of this Python's programs, activated or not."""
    return os.pathsep.join(filter(None, [os.environ.get("PATH"), sysconfig.get_path("scripts")]))


def lacking() -> dict[str, str]:
    """Return what is missing or too old: the requirement and, in words, what is here instead."""
    text = PYPROJECT.read_text(encoding="utf-8")
    python = re.search(r'^requires-python = ">=(.*)"', text, re.MULTILINE).group(1)
    needs = ast.literal_eval(re.search(r"^requires = (\[.*\])", text, re.MULTILINE).group(1))
    if sys.version_info < _numbers(python):
        return {f"Python>={python}": f"this is {sys.version.split()[0]}"}
    lacks = {}
    for need in needs:
        name, _, least = need.partition(">=")
        have = _program(name) if name in PROGRAMS else _package(name)
        if have is None:
            lacks[need] = "none here"
        elif _numbers(have) and _numbers(have) < _numbers(least):
            lacks[need] = f"this is {have}"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        lacks["Python's headers"] = "python3-dev of Debian and Ubuntu, python3-devel of Fedora"
    if not _compiler():
        lacks["a C++17 compiler"] = "g++ or clang++ of your system, or set CXX"
    return lacks


def sentence(lacks: dict[str, str]) -> str:
    """Return what to do about `lacking`, in one sentence."""
    parts = ", ".join(f"{need} ({here})" for need, here in lacks.items())
    packages = [need for need in lacks if " " not in need and not need.startswith("Python>")]
    pip = f"; python -m pip install {shlex.join(packages)}" if packages else ""
    return f"kan_kernels cannot be built without {parts}{pip}"


def _numbers(version: str) -> tuple:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _package(name: str):
    """Return the version of an installed package, "" if it does not say, None if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None if importlib.util.find_spec(name) is None else ""


def _program(name: str):
    """Return the version of a program that runs, or None: a shim of a version manager may not."""
    for program in PROGRAMS[name]:
        found = shutil.which(program, path=search_path())
        run = found and subprocess.run([found, "--version"], capture_output=True, text=True)
        if run and run.returncode == 0:
            return re.search(r"[\d.]+|$", run.stdout).group()
    return None


def _compiler() -> bool:
    """Return whether CMake will find a C++ compiler; where CMAKE_ARGS names one, that is its business."""
    if any(word in os.environ.get("CMAKE_ARGS", "") for word in ("CMAKE_CXX_COMPILER", "TOOLCHAIN")):
        return True
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    return any(shutil.which(name, path=search_path()) for name in named or COMPILERS)
