"""The CUDA kernels compiled by the host's compiler and run on CPU tensors: a backend for the tests.

`library(flags)` builds them into build/cuda_host; the module-level functions have the signatures of the ops.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kan_kernels._core.fakes import functions_together
from kan_kernels.backends import BACKENDS

HERE = Path(__file__).resolve().parents[2]
ROOT = Path(
    os.environ.get("KAN_CUDA_HOST_ROOT", HERE)
)  # whose kernels: tests/mutations names a copy with a fault
BUILD = HERE / "build" / "cuda_host"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = (
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-U_FORTIFY_SOURCE", "-ffp-contract=fast", "-DKAN_UNROLL="),
)
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# How a block's threads take turns; "early": rising, and asynchronous copies land when they are issued.
MODES = {"rising": 0, "falling": 1, "threads": 2, "early": 3}
PATHS = {"auto": 0, "gather": 1, "dense": 2}

NAME = "cuda_host"
DIFFERENTIABLE = False
STACKS = False
NAMESPACE = None

_options: dict[str, Any] = {"path": "auto", "tf32": False, "flags": ()}
runner: Callable | None = (
    None  # takes (call, tensors by field) instead of the library, if set: see sanitize.py
)


def why_not() -> str | None:
    """None, or why the kernels cannot be compiled here."""
    return None if shutil.which(COMPILER) else f"there is no compiler {COMPILER}"


def sources(root: Path = ROOT) -> list[Path]:
    """What is compiled: the kernels of `root`, and the stand-ins of this folder."""
    kernels = sorted((root / "csrc" / "cuda").rglob("*.cu"))
    return [*kernels, *(Path(__file__).parent / name for name in ("bindings.cpp", "runtime.cpp"))]


def compile_objects(root: Path, folder: Path, all_flags: tuple[str, ...], jobs: int = 2) -> list[Path]:
    """Objects of every source; a digest of it and of all headers is in their name.

    A macro of `all_flags` is for the sources that name it.
    """
    headers = [*(root / "csrc").rglob("*.h"), *Path(__file__).parent.glob("*.h")]
    digest = hashlib.sha256(repr((COMPILER, FLAGS)).encode())
    for header in sorted(headers):
        digest.update(header.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> Path:
        own, text = digest.copy(), source.read_bytes()
        flags = [f for f in all_flags if not f.startswith("-D") or f[2:].split("=")[0].encode() in text]
        own.update(repr(flags).encode())
        own.update(text)
        target = folder / f"{source.stem}-{own.hexdigest()[:16]}.o"
        if not target.exists():
            part = target.with_suffix(f".{os.getpid()}")
            include = ("-I", str(root / "csrc"), "-I", str(Path(__file__).parent))
            command = [COMPILER, *FLAGS, *flags, *include, "-x", "c++", "-c", str(source), "-o", str(part)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{source.name} does not compile:\n{done.stderr[-4000:]}")
            part.replace(target)
        return target

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, sources(root)))


@cache
def library(root: Path = ROOT, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernels of `root` as a shared library of this process."""
    objects = compile_objects(root, BUILD, flags)
    name = hashlib.sha256("".join(map(str, objects)).encode()).hexdigest()[:16]
    target = BUILD / f"libcuda_host-{name}.so"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [COMPILER, "-shared", "-pthread", *flags, *map(str, objects), "-o", str(part)], check=True
        )
        part.replace(target)
    return ctypes.CDLL(str(target))


def blocks(kernel: str) -> int:
    """Blocks of the last launch of a kernel, 0 if there was none."""
    count = library(flags=_options["flags"]).kan_cuda_host_blocks
    count.restype = ctypes.c_int64
    return count(kernel.encode())


@contextlib.contextmanager
def options(
    *, path: str = "auto", tf32: bool = False, mode: str = "rising", flags: tuple[str, ...] = ()
) -> Iterator[None]:
    """What the calls inside do: the kernels' path, whether TF32 is allowed, how threads take turns.

    flags: for a library of kernels that were compiled with them.
    """
    before = dict(_options)
    _options.update(path=path, tf32=tf32, flags=flags)
    library(flags=flags).kan_cuda_host_mode(MODES[mode])
    try:
        yield
    finally:
        _options.update(before)
        library(flags=flags).kan_cuda_host_mode(MODES["rising"])


@contextlib.contextmanager
def played(by: Callable | None) -> Iterator[None]:
    """Calls inside go to a runner, or to the library again."""
    global runner
    before, runner = runner, by
    try:
        yield
    finally:
        runner = before


def recording() -> bool:
    """Whether calls are written down, and nothing is computed."""
    return getattr(runner, "computes_nothing", False)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """This module as the backend of its name, for the code inside."""
    name = f"kan_kernels.backends.{NAME}"
    sys.modules[name] = BACKENDS[NAME] = sys.modules[__name__]
    try:
        yield
    finally:
        del sys.modules[name], BACKENDS[NAME]


class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("dtype", "rows", "cols")))


_SIZES = (
    *("batch", "in_features", "out_features", "functions", "order", "base", "weight_dtype"),
    *("basis", "feature_stride", "out_stride"),
)


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in ("grid", "spline_weight", "base_weight", "bias")),
        *((name, _View) for name in ("x", "row_scale", "g")),
        *((name, ctypes.c_int64) for name in ("derivative", "input_derivative")),
        *((name, ctypes.c_void_p) for name in ("y", "input", "d_spline", "d_base")),
        *((name, ctypes.c_int64) for name in ("path", "tf32")),
    )


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _view(tensor: Tensor | None) -> _View:
    if tensor is None:
        return _View()
    return _View(tensor.data_ptr(), DTYPES[tensor.dtype], *tensor.stride())


def _run(
    x, row_scale, spline_weight, base_weight, bias, g, grid,
    functions, order, base, derivative, input_derivative, basis, **out,
):  # fmt: skip
    """Fill the tensors in `out` (y, input, d_spline, d_base)."""
    lies = out.get("d_spline") if spline_weight is None else spline_weight
    together = bool(basis) and lies is not None and functions_together(lies)
    layer = {"grid": grid, "spline_weight": spline_weight, "base_weight": base_weight, "bias": bias}
    for name, t in layer.items():
        if t is not None and not (together and name == "spline_weight"):
            layer[name] = t.contiguous()
    like = spline_weight if g is None else g
    call = _Call(
        *x.shape, like.shape[-1], functions, order, base,
        DTYPES[like.dtype], basis, *((lies.stride(0), lies.stride(2)) if together else (0, 0)),
        *map(_pointer, layer.values()), _view(x), _view(row_scale), _view(g), derivative, input_derivative,
        *(_pointer(out.get(name)) for name in ("y", "input", "d_spline", "d_base")),
        PATHS[_options["path"]], _options["tf32"],
    )  # fmt: skip
    if runner is not None:
        return runner(call, {**layer, "x": x, "row_scale": row_scale, "g": g}, out)
    if library(flags=_options["flags"]).kan_cuda_host_call(ctypes.byref(call)) != 0:
        raise RuntimeError("the kernels raised; their message is on stderr")


def _empty(like: Tensor, *shape: int) -> Tensor:
    """At least one number, so that it has an address; poisoned."""
    tensor = like.new_full((max(1, torch.Size(shape).numel()),), torch.nan)
    return tensor[: torch.Size(shape).numel()].view(shape)


def kan_linear(
    x, row_scale, spline_weight, base_weight, bias, grid, functions, order, base, derivative, basis
):
    y = _empty(spline_weight, x.shape[0], spline_weight.shape[2])
    weights, numbers = (spline_weight, base_weight, bias), (functions, order, base, derivative, 0, basis)
    _run(x, row_scale, *weights, None, grid, *numbers, y=y)
    return y


def kan_linear_grad_input(x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis):
    t = _empty(x, *x.shape)
    numbers = functions, order, base, 0, derivative, basis
    _run(x, None, spline_weight, base_weight, None, g, grid, *numbers, input=t)
    return t


def _gradients(x, g, functions, base, basis, like) -> dict[str, Tensor]:
    """Poisoned; d_spline lies as `like` does where the kernels can."""
    shape = (x.shape[1], g.shape[1]) if base else (0,)
    d_spline = _empty(g, x.shape[1], functions, g.shape[1])
    if basis and like is not None and functions_together(like):
        d_spline = torch.empty_strided(like.shape, like.stride(), dtype=g.dtype).fill_(torch.nan)
    return {"d_spline": d_spline, "d_base": _empty(g, *shape)}


def kan_linear_grad_weight(x, row_scale, g, grid, functions, order, base, derivative, basis, like=None):
    out = _gradients(x, g, functions, base, basis, like)
    numbers = functions, order, base, derivative, 0, basis
    _run(x, row_scale, None, None, None, g, grid, *numbers, **out)
    return out["d_spline"], out["d_base"]


def kan_linear_backward(x, spline_weight, base_weight, g, grid, functions, order, base, derivative, basis):
    out = _gradients(x, g, functions, base, basis, spline_weight)
    t = _empty(x, *x.shape)
    numbers = functions, order, base, derivative, derivative + 1, basis
    _run(x, None, spline_weight, base_weight, None, g, grid, *numbers, input=t, **out)
    return t, out["d_spline"], out["d_base"]


def can_run(problem) -> str | None:
    return why_not() if problem.op in globals() else f"there are no kernels for {problem.op}"
